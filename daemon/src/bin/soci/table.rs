//! Aligned columns on standard output, as Go's tabwriter makes them: four blanks between columns,
//! eight characters at least, the last column filled up too.

use std::io::{self, Write};

use serde::Serialize;

const PADDING: usize = 4;
const MIN_WIDTH: usize = 8;

/// Prints `rows` under `header`.
pub(crate) fn print<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> io::Result<()> {
    io::stdout()
        .lock()
        .write_all(format(header, rows).as_bytes())
}

/// Prints a value as indented JSON.
pub(crate) fn print_json<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(io::stdout().lock().write_all(&text)?)
}

/// `rows` under `header`, as text.
pub(crate) fn format<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let all =
        || std::iter::once(header).chain(rows.iter().map(|row| row.each_ref().map(String::as_str)));
    let mut widths = [0; N];
    for row in all() {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = MIN_WIDTH.max(*width).max(cell.chars().count() + PADDING);
        }
    }
    let line = |row: [&str; N]| -> String {
        let cells = row.iter().zip(widths);
        cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .chain(["\n".to_owned()])
            .collect()
    };
    all().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let text = format(["A", "LONGER"], &[["12345678".into(), "x".into()]]);
        assert_eq!(text, "A           LONGER    \n12345678    x         \n");
    }
}
