//! TOML text into the configuration, without regard to the case of keys.

use std::borrow::Cow;
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Config, ConfigError};

/// Tables whose keys are the user's own: no key in them is unknown.
const FREE: &[&str] = &[
    "resolver.host",
    "pull_modes.parallel_pull_unpack.decompress_streams",
];

/// A key that means nothing to us: a typing error, or of another version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownKey {
    /// With the tables it is in.
    pub key: String,
    /// Its line, from 1.
    pub line: usize,
}

pub(super) fn parse(text: &str, path: &Path) -> Result<(Config, Vec<UnknownKey>), ConfigError> {
    let malformed = |error: toml::de::Error| ConfigError::Malformed {
        path: path.to_owned(),
        line: line(text, error.span().map_or(0, |span| span.start)),
        detail: error.message().to_owned(),
    };
    if crate::nesting::is_too_deep(text) {
        return Err(ConfigError::Malformed {
            path: path.to_owned(),
            line: 1,
            detail: String::from("its tables are nested too deep"),
        });
    }
    let table = DeTable::parse(text).map_err(malformed)?;
    let span = table.span();
    let table = fold(table.into_inner()).map_err(|(key, at)| ConfigError::Malformed {
        path: path.to_owned(),
        line: line(text, at),
        detail: format!("key {key:?} is there twice, in different case"),
    })?;
    let mut unknown = Vec::new();
    find_unknown(&table, &known_keys(), "", &mut |key, at| {
        let line = line(text, at);
        unknown.push(UnknownKey { key, line });
    });
    let deserializer = toml::Deserializer::from(Spanned::new(span, table));
    let config = Config::deserialize(deserializer).map_err(malformed)?;
    Ok((config, unknown))
}

fn line(text: &str, at: usize) -> usize {
    let before = text.as_bytes().iter().take(at);
    1 + before.filter(|byte| **byte == b'\n').count()
}

/// The table with all keys in lower case; or a key that is then there twice, and its position.
fn fold(table: DeTable<'_>) -> Result<DeTable<'_>, (String, usize)> {
    let mut folded = DeTable::new();
    for (key, value) in table {
        let at = key.span();
        let name = key.into_inner().to_lowercase();
        if let Some((first, _)) = folded.get_key_value(name.as_str()) {
            return Err((name, at.start.max(first.span().start)));
        }
        folded.insert(Spanned::new(at, Cow::Owned(name)), fold_value(value)?);
    }
    Ok(folded)
}

fn fold_value(value: Spanned<DeValue<'_>>) -> Result<Spanned<DeValue<'_>>, (String, usize)> {
    let span = value.span();
    let folded = match value.into_inner() {
        DeValue::Table(table) => DeValue::Table(fold(table)?),
        DeValue::Array(values) => DeValue::Array(
            values
                .into_iter()
                .map(fold_value)
                .collect::<Result<_, _>>()?,
        ),
        other => other,
    };
    Ok(Spanned::new(span, folded))
}

/// All keys there are, as the default configuration shows them.
fn known_keys() -> toml::Table {
    toml::Table::try_from(Config::default()).unwrap_or_default()
}

fn lookup<'k>(known: &'k toml::Table, key: &str) -> Option<&'k toml::Value> {
    let mut entries = known.iter();
    entries
        .find(|(name, _)| name.eq_ignore_ascii_case(key))
        .map(|(_, value)| value)
}

fn find_unknown(
    table: &DeTable<'_>,
    known: &toml::Table,
    prefix: &str,
    found: &mut impl FnMut(String, usize),
) {
    for (key, value) in table {
        let name = format!("{prefix}{}", key.get_ref());
        match (lookup(known, key.get_ref()), value.get_ref()) {
            (None, _) => found(name, key.span().start),
            (Some(known), DeValue::Table(table)) => {
                if let toml::Value::Table(known) = known
                    && !FREE.contains(&name.as_str())
                {
                    find_unknown(table, known, &format!("{name}."), found);
                }
            }
            _ => {}
        }
    }
}
