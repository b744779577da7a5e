//! The commands that the documents show are commands that this program knows.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use clap::Parser as _;

use crate::options::Cli;

/// What a shell would make of the line; no document needs more of a shell than quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for letter in line.chars() {
        match (letter, quote) {
            ('\'' | '"', None) => quote = Some(letter),
            (_, Some(open)) if letter == open => quote = None,
            ('#', None) if words.last().unwrap().is_empty() => break,
            (' ', None) => words.push(String::new()),
            _ => words.last_mut().unwrap().push(letter),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The lines in fenced blocks of all documents that begin with `program`.
fn shown(program: &str) -> Vec<(String, Vec<String>)> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let documents = fs::read_dir(project.join("docs")).unwrap();
    let mut paths: Vec<_> = documents.map(|it| it.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|it| it == "md"));
    paths.push(project.join("README.md"));
    let mut found = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let mut inside = false;
        for line in text.lines() {
            if line.trim_start().starts_with("```") {
                inside = !inside;
            }
            let words = words(line.trim().trim_start_matches("$ "));
            if inside && words.first().is_some_and(|word| word == program) {
                found.push((format!("{}: {line}", path.display()), words));
            }
        }
    }
    found
}

#[test]
fn every_soci_command_in_the_documents_is_understood() {
    let shown = shown("soci");
    assert!(shown.len() > 20, "{} commands found", shown.len());
    for (place, words) in shown {
        let words = words
            .iter()
            .take_while(|word| !["|", ">", "&&"].contains(&&***word));
        if let Err(error) = Cli::try_parse_from(words) {
            panic!("{place}: {error}");
        }
    }
}
