//! containerd's filter grammar, as `List` takes it.
//!
//! A filter is a list of conditions on fields, separated by commas, that must all hold. A
//! condition is a field path alone (the field is present) or a field path, an operator (`==`,
//! `!=`, `~=`) and a value. Names and values may be quoted as Go quotes strings; a pattern also
//! with `/` or `|`. Fields of a snapshot are `name`, `parent`, `kind` and `labels."any label"`.

mod parse;
mod scan;

use regex::Regex;

use self::parse::Condition;
use super::record::Entry;

/// Longest filter that is read, in bytes.
const MAX_LENGTH: usize = 16 * 1024;
/// Most filters in one call.
const MAX_FILTERS: usize = 256;

/// A filter or several: a snapshot passes if it matches any, or if there is none.
#[derive(Debug)]
pub struct Filters(Vec<Vec<Condition>>);

#[derive(Debug)]
enum Operator {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

/// What is wrong with a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid filter at byte {position}: {detail}")]
pub struct FilterError {
    /// Where.
    pub position: usize,
    /// What was expected or found.
    pub detail: String,
}

impl Filters {
    /// Reads filters. An empty one matches everything.
    ///
    /// # Errors
    /// A filter that is malformed, too long, or has a pattern that takes too much memory.
    pub fn parse(filters: &[String]) -> Result<Self, FilterError> {
        if filters.len() > MAX_FILTERS {
            return Err(error(0, format!("more than {MAX_FILTERS} filters")));
        }
        let parsed: Result<_, _> = filters.iter().map(|filter| parse_one(filter)).collect();
        parsed.map(Self)
    }

    /// Whether a snapshot is wanted.
    pub fn matches(&self, entry: &Entry) -> bool {
        self.0.is_empty()
            || self
                .0
                .iter()
                .any(|conditions| conditions.iter().all(|condition| holds(condition, entry)))
    }
}

fn parse_one(filter: &str) -> Result<Vec<Condition>, FilterError> {
    if filter.len() > MAX_LENGTH {
        return Err(error(MAX_LENGTH, "the filter is too long"));
    }
    if filter.is_empty() {
        return Ok(Vec::new());
    }
    parse::conditions(filter)
}

fn holds(condition: &Condition, entry: &Entry) -> bool {
    let value = field(entry, &condition.path);
    match &condition.operator {
        Operator::Present => value.is_some(),
        Operator::Equal(wanted) => value == Some(wanted),
        Operator::NotEqual(unwanted) => value.unwrap_or_default() != unwanted,
        Operator::Matches(pattern) => pattern.is_match(value.unwrap_or_default()),
    }
}

/// The field's value; absent if a snapshot has no such field or label.
fn field<'e>(entry: &'e Entry, path: &[String]) -> Option<&'e str> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "name" => Some(&entry.key),
        "parent" => Some(entry.record.parent.as_deref().unwrap_or_default()),
        "kind" => Some(entry.record.kind.name()),
        // A label may be written unquoted: its dots then look like a path.
        "labels" => entry.record.labels.get(&rest.join(".")).map(String::as_str),
        _ => None,
    }
}

fn error(position: usize, detail: impl Into<String>) -> FilterError {
    FilterError {
        position,
        detail: detail.into(),
    }
}

#[cfg(test)]
mod tests;
