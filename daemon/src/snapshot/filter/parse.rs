//! Conditions out of words.

use regex::RegexBuilder;

use super::scan::{Scanner, Word, WordKind};
use super::{FilterError, Operator, error};

/// Memory that a compiled pattern may take, in bytes.
const PATTERN_MEMORY: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Condition {
    pub(super) path: Vec<String>,
    pub(super) operator: Operator,
}

/// Reads a whole filter.
pub(super) fn conditions(filter: &str) -> Result<Vec<Condition>, FilterError> {
    let mut scanner = Scanner::new(filter);
    let mut conditions = Vec::new();
    loop {
        let (condition, after) = condition(&mut scanner)?;
        conditions.push(condition);
        match after.kind {
            WordKind::Comma => {}
            WordKind::End => return Ok(conditions),
            _ => return Err(error(after.position, "a comma must follow a condition")),
        }
    }
}

/// Reads one condition and the word behind it.
fn condition<'f>(scanner: &mut Scanner<'f>) -> Result<(Condition, Word<'f>), FilterError> {
    let mut path = vec![field(&scanner.next()?)?];
    let mut word = scanner.next()?;
    while word.kind == WordKind::Dot {
        path.push(field(&scanner.next()?)?);
        word = scanner.next()?;
    }
    let WordKind::Operator(text) = word.kind else {
        let operator = Operator::Present;
        return Ok((Condition { path, operator }, word));
    };
    let value = scanner.next()?;
    let operator = match text {
        "==" => Operator::Equal(literal(&value, false)?),
        "!=" => Operator::NotEqual(literal(&value, false)?),
        "~=" => pattern(&value)?,
        _ => {
            let detail = format!("{text:?} is no operator: use ==, != or ~=");
            return Err(error(word.position, detail));
        }
    };
    Ok((Condition { path, operator }, scanner.next()?))
}

fn field(word: &Word<'_>) -> Result<String, FilterError> {
    match word.kind {
        WordKind::Field(name) => Ok(name.to_owned()),
        WordKind::Quoted(quoted) => unquote(word.position, quoted, false),
        _ => Err(error(word.position, "a field is expected")),
    }
}

fn literal(word: &Word<'_>, any_quote: bool) -> Result<String, FilterError> {
    match word.kind {
        WordKind::Value(value) | WordKind::Field(value) => Ok(value.to_owned()),
        WordKind::Quoted(quoted) => unquote(word.position, quoted, any_quote),
        _ => Err(error(word.position, "a value or quoted text is expected")),
    }
}

fn pattern(word: &Word<'_>) -> Result<Operator, FilterError> {
    RegexBuilder::new(&literal(word, true)?)
        .size_limit(PATTERN_MEMORY)
        .dfa_size_limit(PATTERN_MEMORY)
        .build()
        .map(Operator::Matches)
        .map_err(|problem| error(word.position, problem.to_string()))
}

/// What a quoted text stands for, with the escapes of Go's string literals.
fn unquote(position: usize, quoted: &str, any_quote: bool) -> Result<String, FilterError> {
    let mut characters = quoted.chars();
    let quote = characters.next().unwrap_or('"');
    if quote != '"' && !any_quote {
        return Err(error(position, "only double quotes are allowed here"));
    }
    let inner = &quoted[1..quoted.len() - 1];
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner.chars();
    while let Some(c) = rest.next() {
        if c == '\\' {
            escape(&mut rest, quote, &mut bytes)
                .ok_or_else(|| error(position, "an escape sequence is malformed"))?;
        } else {
            push(&mut bytes, c);
        }
    }
    String::from_utf8(bytes).map_err(|_| error(position, "the quoted text is not UTF-8"))
}

/// Reads what follows a backslash.
fn escape(rest: &mut std::str::Chars<'_>, quote: char, bytes: &mut Vec<u8>) -> Option<()> {
    let byte = match rest.next()? {
        'a' => 0x07,
        'b' => 0x08,
        'f' => 0x0c,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 0x0b,
        'x' => u8::try_from(number(rest, 2, 16)?).ok()?,
        c @ '0'..='7' => {
            let high = c.to_digit(8)?;
            u8::try_from(high * 64 + number(rest, 2, 8)?).ok()?
        }
        'u' => return push(bytes, char::from_u32(number(rest, 4, 16)?)?),
        'U' => return push(bytes, char::from_u32(number(rest, 8, 16)?)?),
        c if c == quote || c == '\\' => return push(bytes, c),
        _ => return None,
    };
    bytes.push(byte);
    Some(())
}

fn push(bytes: &mut Vec<u8>, c: char) -> Option<()> {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    Some(())
}

fn number(rest: &mut std::str::Chars<'_>, digits: usize, radix: u32) -> Option<u32> {
    (0..digits).try_fold(0u32, |number, _| {
        let digit = rest.next()?.to_digit(radix)?;
        number.checked_mul(radix)?.checked_add(digit)
    })
}
