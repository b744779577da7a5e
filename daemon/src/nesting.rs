//! How deep a TOML text goes, told before it is read.
//!
//! `toml` limits brackets within brackets and parts of a key, but not both together: inline tables under long
//! dotted keys are nested thousands of levels deep, and what takes such values apart again has no stack for that.

use toml_parser::Source;
use toml_parser::lexer::TokenKind;

/// Deeper than any file that means something.
const DEEPEST: usize = 64;

/// Whether `text` has so many tables and arrays within each other, that of a dotted key included, that it is not to
/// be read. Costs one pass over its tokens.
pub(crate) fn is_too_deep(text: &str) -> bool {
    // Brackets that are open, each with what it adds to the depth.
    let mut open: Vec<(TokenKind, usize)> = Vec::new();
    let (mut depth, mut dots) = (0usize, 0usize);
    for token in Source::new(text).lex() {
        match token.kind() {
            TokenKind::Dot => dots += 1,
            opening @ (TokenKind::LeftCurlyBracket | TokenKind::LeftSquareBracket) => {
                open.push((opening, dots + 1));
                depth += dots + 1;
                dots = 0;
            }
            TokenKind::RightCurlyBracket => {
                close(&mut open, &mut depth, TokenKind::LeftCurlyBracket)
            }
            TokenKind::RightSquareBracket => {
                close(&mut open, &mut depth, TokenKind::LeftSquareBracket)
            }
            TokenKind::Comma | TokenKind::Newline => dots = 0,
            _ => {}
        }
        if depth + dots > DEEPEST {
            return true;
        }
    }
    false
}

/// One that closes something else closes nothing: the depth is rather told too high.
fn close(open: &mut Vec<(TokenKind, usize)>, depth: &mut usize, opening: TokenKind) {
    if let Some((_, adds)) = open.pop_if(|(kind, _)| *kind == opening) {
        *depth -= adds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_adds_up_over_brackets_and_dotted_keys() {
        let key = ["k"; 10].join(".");
        let nested = |levels: usize| {
            let open = format!("{{{key}=").repeat(levels);
            format!("a={open}1{}", "}".repeat(levels))
        };
        assert!(!is_too_deep(&nested(6)));
        assert!(is_too_deep(&nested(7)));
        assert!(is_too_deep(&"[".repeat(65)));
        assert!(is_too_deep(&"{a=[".repeat(33)));
        assert!(is_too_deep(&format!("[{}]", ["k"; 70].join("."))));
    }

    #[test]
    fn what_is_wide_long_or_quoted_is_not_deep() {
        assert!(!is_too_deep(&"a=[1,{b=2.5}]\n".repeat(1000)));
        assert!(!is_too_deep(&format!("a = \"{}\"", "{[.".repeat(1000))));
        assert!(!is_too_deep(&format!("# {}\na=1", "{".repeat(1000))));
        assert!(!is_too_deep(&format!("a = [{}]", ["1.5"; 1000].join(", "))));
    }
}
