//! What a model's name means.

use std::path::{Path, PathBuf};

use crate::{
    catalogue::{Entry, Source, catalogue},
    error::{Error, Result},
    wheel::Wheel,
};

/// What a model's name means.
#[derive(Debug)]
pub(crate) enum Name {
    /// A catalogue model out of a pip package.
    Package(&'static Entry, &'static Wheel),
    /// A repository, or one file of it.
    Repository { id: String, file: Option<String> },
    /// A path on this machine.
    Path(PathBuf),
}

impl Name {
    /// Reads a name. The catalogue comes first, then what exists on this machine, then the hub.
    pub(crate) fn parse(name: &str) -> Result<Self> {
        if let Some(entry) = catalogue().iter().find(|entry| entry.name == name) {
            return Ok(match entry.source {
                Source::Pip(wheel) => Self::Package(entry, wheel),
                Source::Repository { id, .. } => Self::Repository { id: id.to_owned(), file: None },
            });
        }
        let path = Path::new(name);
        if !name.is_empty() && (path.exists() || looks_like_a_path(name)) {
            return Ok(Self::Path(path.to_owned()));
        }
        let unknown = || Error::UnknownName {
            name: name.to_owned(),
            known: catalogue().iter().map(|entry| entry.name).collect::<Vec<_>>().join(", "),
        };
        let (id, file) = split(name).ok_or_else(unknown)?;
        if !is_repository(id) {
            return Err(unknown());
        }
        if let Some(file) = file {
            check_relative(file, || format!("`{name}`"))?;
            if !is_gguf(file) {
                return Err(unknown());
            }
        }
        Ok(Self::Repository { id: id.to_owned(), file: file.map(ToOwned::to_owned) })
    }
}

/// Whether the name ends in `.gguf`.
pub(crate) fn is_gguf(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Refuses a file name of a repository that would leave its folder on any system.
pub(crate) fn check_relative(file: &str, from: impl FnOnce() -> String) -> Result<()> {
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    if file.split('/').all(plain) && !file.contains(['\\', ':', '\0']) {
        return Ok(());
    }
    Err(Error::UnsafeName { file: file.to_owned(), from: from() })
}

fn looks_like_a_path(name: &str) -> bool {
    let parts = name.split('/').count();
    Path::new(name).is_absolute()
        || name.starts_with(['.', '~'])
        || name.contains('\\')
        || (is_gguf(name) && !name.contains(':') && parts < 3)
}

/// `org/repo`, and the file after `:` or a further `/`.
fn split(name: &str) -> Option<(&str, Option<&str>)> {
    if let Some((id, file)) = name.split_once(':') {
        return Some((id, Some(file)));
    }
    let slash = name.find('/')?;
    match name[slash + 1..].find('/') {
        Some(second) => Some((&name[..slash + 1 + second], Some(&name[slash + second + 2..]))),
        None => Some((name, None)),
    }
}

/// `org/repo` as the hub allows them.
fn is_repository(id: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
            && !part.contains("--")
            && !part.contains("..")
    };
    id.split_once('/').is_some_and(|(org, repo)| part(org) && part(repo))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(name: &str) -> (String, Option<String>) {
        match Name::parse(name).unwrap() {
            Name::Repository { id, file } => (id, file),
            other => panic!("`{name}` is {other:?}"),
        }
    }

    #[test]
    fn names_of_every_kind() {
        assert!(
            matches!(Name::parse("smollm2-135m"), Ok(Name::Package(entry, _)) if entry.name == "smollm2-135m")
        );
        assert_eq!(repository("llama-3.2-1b"), ("meta-llama/Llama-3.2-1B-Instruct".into(), None));
        assert_eq!(repository("org/repo"), ("org/repo".into(), None));
        for name in ["org/repo:a.gguf", "org/repo/a.gguf"] {
            assert_eq!(repository(name), ("org/repo".into(), Some("a.gguf".into())));
        }
        assert_eq!(repository("org/repo/sub/a.GGUF"), ("org/repo".into(), Some("sub/a.GGUF".into())));
        for name in
            ["/no/such/folder", "./org", "~/x", "model.gguf", "folder/model.gguf", "..", r"C:\model.gguf"]
        {
            assert!(matches!(Name::parse(name), Ok(Name::Path(_))), "{name}");
        }
    }

    #[test]
    fn what_exists_here_comes_before_the_hub() {
        assert!(matches!(Name::parse("src"), Ok(Name::Path(_))));
    }

    #[test]
    fn names_of_no_kind_are_told_the_catalogue() {
        for name in
            ["", "llama", "org/", "a/b/c", "a--b/c", "-a/b", "org/re po", "org/repo:model.bin", "org/.."]
        {
            let error = Name::parse(name).unwrap_err();
            assert!(
                matches!(&error, Error::UnknownName { known, .. } if known.contains("smollm2-135m")),
                "{name}"
            );
        }
    }

    #[test]
    fn files_that_climb_out_are_refused() {
        for name in ["org/repo:../a.gguf", "org/repo/../a.gguf", "org/repo:/a.gguf", "org/repo:a/./b.gguf"] {
            assert!(matches!(Name::parse(name), Err(Error::UnsafeName { .. })), "{name}");
        }
    }
}
