//! Values printed as Python prints them.

use std::fmt::Write;

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind, Output, State};
use serde_json::Value as Json;

/// Far above what anyone would read; a template comes from a stranger.
const MOST_INDENT: usize = 64;

/// Prints a value in `{{ }}`; minijinja already prints all but floats as Python does.
pub(super) fn format(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    if value.is_number() && !value.is_integer() {
        let number = f64::try_from(value.clone())?;
        return out.write_str(&float(number)).map_err(Error::from);
    }
    minijinja::escape_formatter(out, state, value)
}

/// The `tojson` filter as transformers defines it: `json.dumps` without escapes for HTML.
#[allow(clippy::needless_pass_by_value)] // the engine hands its arguments over by value
pub(super) fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    if let Some(indent) = indent.filter(|&indent| indent > MOST_INDENT) {
        let detail = format!("tojson got an indent of {indent}, at most {MOST_INDENT} is allowed");
        return Err(Error::new(ErrorKind::InvalidOperation, detail));
    }
    // Never asked for otherwise by transformers' own default.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let json = serde_json::to_value(value).map_err(|error| {
        Error::new(ErrorKind::BadSerialization, "tojson got a value without a JSON form").with_source(error)
    })?;
    let mut out = String::new();
    dump(&json, indent, 0, &mut out);
    Ok(out)
}

/// Appends `json.dumps(value)`.
fn dump(value: &Json, indent: Option<usize>, depth: usize, out: &mut String) {
    match value {
        Json::Number(number) if number.is_f64() => out.push_str(&float(number.as_f64().unwrap_or(f64::NAN))),
        Json::Array(items) => {
            let dumps = items.iter().map(|item| move |out: &mut String| dump(item, indent, depth + 1, out));
            list('[', ']', dumps, indent, depth, out);
        }
        Json::Object(items) => {
            let dumps = items.iter().map(|(key, item)| {
                move |out: &mut String| {
                    out.push_str(&Json::from(key.as_str()).to_string());
                    out.push_str(": ");
                    dump(item, indent, depth + 1, out);
                }
            });
            list('{', '}', dumps, indent, depth, out);
        }
        plain => out.push_str(&plain.to_string()),
    }
}

/// Appends items between brackets, on lines of their own if there is an indent.
fn list<F: FnOnce(&mut String)>(
    open: char,
    close: char,
    items: impl ExactSizeIterator<Item = F>,
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
) {
    let empty = items.len() == 0;
    let new_line = |out: &mut String, depth: usize| {
        if let Some(width) = indent.filter(|_| !empty) {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    out.push(open);
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        new_line(out, depth + 1);
        item(out);
    }
    new_line(out, depth);
    out.push(close);
}

/// `repr` of a float: the shortest digits, with an exponent below 1e-4 and from 1e16 on.
fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let magnitude = number.abs();
    if number == 0.0 || (1e-4..1e16).contains(&magnitude) {
        return format!("{number:?}");
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').expect("the format has an exponent");
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    let mut out = String::new();
    write!(out, "{digits}e{sign}{exponent:0>2}").expect("writing to memory cannot fail");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_printed_as_python_prints_them() {
        let expected = [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-7, "1e-07"),
            (1.5e-5, "1.5e-05"),
            (0.0001, "0.0001"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (-2.5e20, "-2.5e+20"),
            (1e300, "1e+300"),
            (0.0, "0.0"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (number, text) in expected {
            assert_eq!(float(number), text);
        }
    }
}
