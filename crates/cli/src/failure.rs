//! How an error reaches the user: what happened, why, and what to do next.

/// Prints the chain of causes and a hint.
pub(crate) fn print(error: &anyhow::Error) {
    eprintln!("error: {error}");
    let mut last = error.to_string();
    for cause in error.chain().skip(1) {
        let text = cause.to_string();
        // A transparent wrapper says the same twice.
        if text != last {
            eprintln!("  because: {text}");
        }
        last = text;
    }
    if let Some(hint) = hint(error) {
        eprintln!("hint: {hint}");
    }
}

fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<router::Error>() {
            return error.hint();
        }
        cause.downcast_ref::<routing::Error>().map(routing::Error::hint)
    })
}
