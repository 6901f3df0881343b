// Tables that sort by their columns.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const numeric = head.classList.contains("n");
      const up = head.ariaSort === "descending" || (head.ariaSort !== "ascending" && !numeric);
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const text = (row) => row.cells[column].textContent;
      const value = (row) => (Number(text(row)) >= 0 ? Number(text(row)) : Infinity);
      const order = (a, b) => (numeric ? value(a) - value(b) || 0 : text(a).localeCompare(text(b)));
      body.append(...[...body.rows].sort((a, b) => (up ? order(a, b) : order(b, a))));
    });
  });
}

// Matrices that grow and shrink, and tell the cell that is pointed at.
for (const matrix of document.querySelectorAll(".matrix")) {
  const [pane, svg, cross] = [".pane", "svg", ".cross"].map((part) => matrix.querySelector(part));
  const [cell, left, top] = ["cell", "left", "top"].map((name) => Number(matrix.dataset[name]));
  const natural = svg.viewBox.baseVal;
  const readout = matrix.querySelector(".readout");
  let zoom = 1;
  const fitting = () => Math.min(1, pane.clientWidth / natural.width);
  // The place that stays where it is: the middle of the pane, or where the pointer is.
  const enlarge = (to, x = pane.clientWidth / 2, y = pane.clientHeight / 2) => {
    const next = Math.min(6, Math.max(fitting() || 1, to));
    const [atX, atY] = [(pane.scrollLeft + x) / zoom, (pane.scrollTop + y) / zoom];
    zoom = next;
    svg.setAttribute("width", natural.width * zoom);
    svg.setAttribute("height", natural.height * zoom);
    pane.scrollTo(atX * zoom - x, atY * zoom - y);
  };
  const steps = { in: () => enlarge(zoom * 1.5), out: () => enlarge(zoom / 1.5), fit: () => enlarge(0) };
  for (const button of matrix.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", steps[button.dataset.zoom]);
  }
  svg.addEventListener("dblclick", (event) => {
    const box = pane.getBoundingClientRect();
    enlarge(zoom * 2, event.clientX - box.left, event.clientY - box.top);
  });
  const tell = (rect) => {
    readout.textContent = rect.querySelector("title").textContent;
    const [x, y] = [rect.x.baseVal.value, rect.y.baseVal.value];
    cross.setAttribute("d", `M${left} ${y}H${x + cell}V${top}H${x}V${y}ZM${left} ${y + cell}H${x}V${y}H${left}Z`);
  };
  svg.addEventListener("pointerover", (event) => event.target.matches(".cell") && tell(event.target));
  for (const hidden of matrix.querySelectorAll("[hidden]")) hidden.hidden = false;
}
