//! Words of a filter.

use super::{FilterError, error};

/// A word and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word<'f> {
    pub(super) position: usize,
    pub(super) kind: WordKind<'f>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WordKind<'f> {
    /// An unquoted name.
    Field(&'f str),
    /// An unquoted value; only after an operator.
    Value(&'f str),
    /// With its quotes.
    Quoted(&'f str),
    /// A run of `=`, `!`, `~`.
    Operator(&'f str),
    Comma,
    Dot,
    End,
}

/// Cuts a filter into words. After an operator, anything up to a comma or a space is a value.
#[derive(Debug)]
pub(super) struct Scanner<'f> {
    filter: &'f str,
    position: usize,
    value: bool,
}

impl<'f> Scanner<'f> {
    pub(super) fn new(filter: &'f str) -> Self {
        Self {
            filter,
            position: 0,
            value: false,
        }
    }

    pub(super) fn next(&mut self) -> Result<Word<'f>, FilterError> {
        self.take(char::is_whitespace);
        let position = self.position;
        let kind = match self.rest().chars().next() {
            None => WordKind::End,
            Some(quote @ ('"' | '/' | '|')) => self.quoted(quote)?,
            Some(',') => self.separator(WordKind::Comma),
            Some('.') => self.separator(WordKind::Dot),
            Some('=' | '!' | '~') => {
                self.value = true;
                WordKind::Operator(self.take(|c| matches!(c, '=' | '!' | '~')))
            }
            Some(c) if self.value && is_value(c) => {
                self.value = false;
                WordKind::Value(self.take(is_value))
            }
            Some(c) if is_field(c) => WordKind::Field(self.take(is_field)),
            Some(c) => return Err(error(position, format!("unexpected {c:?}"))),
        };
        Ok(Word { position, kind })
    }

    fn rest(&self) -> &'f str {
        &self.filter[self.position..]
    }

    fn take(&mut self, wanted: impl Fn(char) -> bool) -> &'f str {
        let rest = self.rest();
        let end = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.position += end;
        &rest[..end]
    }

    fn separator(&mut self, kind: WordKind<'f>) -> WordKind<'f> {
        self.value = false;
        self.position += 1;
        kind
    }

    fn quoted(&mut self, quote: char) -> Result<WordKind<'f>, FilterError> {
        let rest = self.rest();
        let mut escaped = false;
        for (at, c) in rest.char_indices().skip(1) {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                c if c == quote => {
                    self.value = false;
                    self.position += at + 1;
                    return Ok(WordKind::Quoted(&rest[..=at]));
                }
                _ => {}
            }
        }
        Err(error(
            self.position,
            format!("the quote {quote} is not closed"),
        ))
    }
}

fn is_field(c: char) -> bool {
    c == '_' || c.is_ascii_alphanumeric()
}

fn is_value(c: char) -> bool {
    c != ',' && !c.is_whitespace() && !c.is_control()
}
