//! How an error reaches the user: what happened, why, and what to do next.

use std::io;

use crate::terminal::say;

/// Prints the chain of causes and a hint.
pub(crate) fn print(error: &anyhow::Error) {
    say!("error: {error}");
    let mut last = error.to_string();
    for cause in error.chain().skip(1) {
        let text = cause.to_string();
        // A transparent wrapper says the same twice.
        if text != last {
            say!("  because: {text}");
        }
        last = text;
    }
    if let Some(hint) = hint(error) {
        say!("hint: {hint}");
    }
}

fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<router::Error>().and_then(router::Error::hint) {
            return Some(error);
        }
        if let Some(error) = cause.downcast_ref::<routing::Error>() {
            return Some(error.hint());
        }
        cause.downcast_ref::<io::Error>().and_then(of_system).map(str::to_owned)
    })
}

/// What to do about the system's refusal.
fn of_system(error: &io::Error) -> Option<&'static str> {
    Some(match error.kind() {
        io::ErrorKind::NotFound => "check the spelling, and the folder that the command runs in",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "name another place, or give this user the right to use that one"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room there, or name another place",
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "a file stands where a folder is needed: name another place"
        }
        io::ErrorKind::IsADirectory => "a folder stands where a file is needed: name a file inside it",
        _ => return None,
    })
}
