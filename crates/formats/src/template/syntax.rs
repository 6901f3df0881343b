//! The one tag that transformers adds to the language.

use std::borrow::Cow;

/// Turns `{% generation %}` and `{% endgeneration %}`, which only mark what an assistant said, into an `if`
/// that always holds, keeping the `-` and `+` marks that eat whitespace.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start + 2..].find("%}").map(|end| end + 4) else { break };
        let tag = &rest[start..start + len];
        out.push_str(&rest[..start]);
        out.push_str(&plain_tag(tag));
        rest = &rest[start + len..];
    }
    out + rest
}

fn plain_tag(tag: &str) -> Cow<'_, str> {
    let inside = &tag[2..tag.len() - 2];
    match inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
        "generation" => tag.replace("generation", "if true").into(),
        "endgeneration" => tag.replace("endgeneration", "endif").into(),
        _ => tag.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tag_is_replaced() {
        let source = "{%- generation -%}a generation{% endgeneration %}{% if generation %}{{ generation }}{% endif %}{%";
        let plain = "{%- if true -%}a generation{% endif %}{% if generation %}{{ generation }}{% endif %}{%";
        assert_eq!(without_generation_tags(source), plain);
        assert_eq!(without_generation_tags("ä{%+ generation %}"), "ä{%+ if true %}");
        assert_eq!(without_generation_tags("{%}"), "{%}");
    }
}
