//! `frontdesk.toml`: every flag may stand there, under its verb or at the top for all verbs that have it.
//!
//! ```toml
//! base = "smollm2-135m"
//! [train]
//! epochs = 5
//! ```

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, bail};
use clap::{ArgAction, Command};
use toml::Value;

const FILE: &str = "frontdesk.toml";

/// The arguments with those of the file put before the user's own, which therefore win.
pub(crate) fn with_file(
    args: impl Iterator<Item = OsString>,
    command: &Command,
) -> anyhow::Result<Vec<OsString>> {
    let mut args: Vec<OsString> = args.collect();
    let verb = args.get(1).and_then(|arg| arg.to_str()).and_then(|name| command.find_subcommand(name));
    let (Some(verb), true) = (verb, Path::new(FILE).is_file()) else { return Ok(args) };
    let text = std::fs::read_to_string(FILE).with_context(|| format!("{FILE}: cannot be read"))?;
    let table: toml::Table = text.parse().with_context(|| format!("{FILE}: is not valid TOML"))?;
    let mut from_file = Vec::new();
    for (key, value) in &table {
        match value {
            Value::Table(_) if command.find_subcommand(key).is_some() => {}
            Value::Table(_) => bail!("{FILE}: [{key}] is not a verb of frontdesk"),
            _ if has_flag(verb, key) => push(&mut from_file, verb, key, value)?,
            _ if command.get_subcommands().any(|verb| has_flag(verb, key)) => {}
            _ => bail!("{FILE}: no verb has a flag --{key}"),
        }
    }
    if let Some(own) = table.get(verb.get_name()).and_then(Value::as_table) {
        for (key, value) in own {
            if !has_flag(verb, key) {
                bail!("{FILE}: `{}` has no flag --{key}", verb.get_name());
            }
            push(&mut from_file, verb, key, value)?;
        }
    }
    args.splice(2..2, from_file);
    Ok(args)
}

fn has_flag(verb: &Command, key: &str) -> bool {
    verb.get_arguments().any(|arg| arg.get_long() == Some(key))
}

fn push(args: &mut Vec<OsString>, verb: &Command, key: &str, value: &Value) -> anyhow::Result<()> {
    let switch = verb
        .get_arguments()
        .any(|arg| arg.get_long() == Some(key) && matches!(arg.get_action(), ArgAction::SetTrue));
    let text = match value {
        Value::Boolean(on) if switch => {
            if *on {
                args.push(format!("--{key}").into());
            }
            return Ok(());
        }
        Value::String(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Array(items) if items.iter().all(Value::is_str) => {
            items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
        }
        other => bail!("{FILE}: `{key}` cannot be a {}", other.type_str()),
    };
    args.push(format!("--{key}={text}").into());
    Ok(())
}
