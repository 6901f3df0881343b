"""Writes fixtures/template/renders.json: what transformers makes of the templates in that folder.

    python template.py        reads and writes fixtures/template of this repository
The clock is frozen at the day that `formats` shows to templates. A refused conversation has `error` for `text`.
"""
import datetime
import json
from pathlib import Path

import jinja2
from transformers.utils import chat_template_utils

import manifest

OUT = Path(__file__).resolve().parents[2] / "fixtures/template"
BOS, EOS = "<|bos|>", "<|eos|>"


def turn(role, content):
    return {"role": role, "content": content}


CONVERSATIONS = [
    [turn("user", "Where is my card?")],
    [turn("system", "  Route the query. \n"), turn("user", "Someone hit my parked car.")],
    [turn("user", " Hi "), turn("assistant", "Hello! How can I help?"), turn("user", "Größe 👍🏽 <b>&\"'\n\tÜ")],
    [turn("user", "a"), turn("user", "b?")],
    [turn("judge", "c")],
    [turn("system", ""), turn("user", ""), turn("assistant", "<|end|> {{ bos_token }} {% raw %}"), turn("user", "\\n \\ ")],
    [turn("user", str(i) + "?") for i in range(7)],
]


class Frozen(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26, tzinfo=tz)


def render(source, messages, add_generation_prompt):
    rendered, _ = chat_template_utils.render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=add_generation_prompt, bos_token=BOS, eos_token=EOS
    )
    return rendered[0]


def main():
    chat_template_utils.datetime = Frozen
    cases = []
    for path in sorted(OUT.glob("*.jinja")):
        for messages in CONVERSATIONS:
            for add_generation_prompt in [False, True]:
                case = {"template": path.name, "messages": messages, "add_generation_prompt": add_generation_prompt}
                try:
                    case["text"] = render(path.read_text(encoding="utf-8"), messages, add_generation_prompt)
                except jinja2.TemplateError as error:
                    case["error"] = str(error)
                cases.append(case)
    renders = OUT / "renders.json"
    text = json.dumps({"bos_token": BOS, "eos_token": EOS, "cases": cases}, ensure_ascii=False, indent=1)
    renders.write_text(text + "\n", encoding="utf-8")
    manifest.update(OUT, "template.py", [*OUT.glob("*.jinja"), renders])


if __name__ == "__main__":
    main()
