//! Where things are, as the environment says.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use wire::{Backoff, Secret};

use crate::hub::Hub;

/// The hub counts requests over five minutes.
const BACKOFF: Backoff =
    Backoff { tries: 5, first: Duration::from_millis(500), longest: Duration::from_mins(5) };

/// A hub as the variables say; `variable` gives a variable's value.
pub(crate) fn read(variable: impl Fn(&str) -> Option<OsString>) -> Hub {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
    let user = env::home_dir().unwrap_or_else(|| PathBuf::from("."));
    let folder = |name: &str| set(name).map(|value| expand(Path::new(&value), &user));
    let xdg = || folder("XDG_CACHE_HOME").unwrap_or_else(|| user.join(".cache"));

    let platform_cache = || {
        if cfg!(target_os = "macos") {
            user.join("Library/Caches")
        } else if cfg!(windows) {
            folder("LOCALAPPDATA").unwrap_or_else(|| user.join("AppData/Local"))
        } else {
            xdg()
        }
    };
    let hf_home = folder("HF_HOME").unwrap_or_else(|| xdg().join("huggingface"));
    let token_file = folder("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
    let token = text("HF_TOKEN")
        .and_then(|token| Secret::new(&token))
        .or_else(|| fs::read_to_string(token_file).ok().and_then(|token| Secret::new(&token)));
    let offline = text("HF_HUB_OFFLINE")
        .is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true"));

    Hub {
        home: folder("FRONTDESK_HOME").unwrap_or_else(|| platform_cache().join("frontdesk")),
        cache: folder("HF_HUB_CACHE").unwrap_or_else(|| hf_home.join("hub")),
        endpoint: text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
        token,
        offline,
        python: folder("FRONTDESK_PYTHON"),
        backoff: BACKOFF,
        sleep: std::thread::sleep,
        stall: Duration::from_mins(1),
    }
}

/// `~/` as a shell would, for values that no shell has seen.
fn expand(path: &Path, user: &Path) -> PathBuf {
    path.strip_prefix("~").map_or_else(|_| path.to_owned(), |rest| user.join(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(variables: &[(&str, &str)]) -> Hub {
        let find = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).into());
        read(find)
    }

    #[test]
    fn each_variable_is_followed() {
        let it = hub(&[
            ("FRONTDESK_HOME", "/f"),
            ("HF_HOME", "/h"),
            ("HF_ENDPOINT", "http://mirror"),
            ("HF_HUB_OFFLINE", "True"),
            ("HF_TOKEN", "hf_x"),
            ("FRONTDESK_PYTHON", "/py"),
        ]);
        assert_eq!((it.home, it.cache), ("/f".into(), PathBuf::from("/h/hub")));
        assert_eq!((it.endpoint.as_str(), it.offline), ("http://mirror", true));
        assert_eq!(it.token.unwrap().header().unwrap(), "Bearer hf_x");
        assert_eq!(it.python, Some("/py".into()));
        assert_eq!(hub(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]).cache, PathBuf::from("/c"));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_default_is_the_platforms_cache() {
        let it = hub(&[("XDG_CACHE_HOME", "/x"), ("HF_HUB_OFFLINE", "0"), ("FRONTDESK_HOME", "")]);
        assert_eq!((it.home, it.cache), ("/x/frontdesk".into(), PathBuf::from("/x/huggingface/hub")));
        assert!(!it.offline && it.token.is_none() && it.endpoint.starts_with("https://"));
        let user = env::home_dir().unwrap();
        assert_eq!(hub(&[]).home, user.join(".cache/frontdesk"));
        assert_eq!(hub(&[("FRONTDESK_HOME", "~/f")]).home, user.join("f"));
    }

    #[test]
    fn the_token_file_is_read_and_the_variable_wins() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let home = folder.path().to_str().unwrap();
        let bearer = |hub: Hub| hub.token.unwrap().header().unwrap().to_str().unwrap().to_owned();
        assert_eq!(bearer(hub(&[("HF_HOME", home)])), "Bearer hf_file");
        assert_eq!(bearer(hub(&[("HF_HOME", home), ("HF_TOKEN", "hf_var")])), "Bearer hf_var");
    }
}
