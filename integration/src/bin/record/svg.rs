//! Lines of a terminal as a picture.

use std::fmt::Write as _;

use crate::screen::{Cell, Line};

/// Pixels of a row, and of a character in the font that is asked for.
const ROW: usize = 18;
const COLUMN: f64 = 7.83;
/// Longer lines are cut, as a window would.
const COLUMNS: usize = 150;
const MARGIN: usize = 14;

/// A picture of `lines`.
pub(crate) fn draw(lines: &[Line]) -> String {
    let longest = lines.iter().map(|line| line.0.len()).max().unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "columns of a window")]
    let width = longest.min(COLUMNS) as f64 * COLUMN + 2.0 * MARGIN as f64;
    let height = lines.len() * ROW + 2 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height}\" \
         font-family=\"ui-monospace, DejaVu Sans Mono, monospace\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"#0d1117\"/>\n"
    );
    for (number, line) in lines.iter().enumerate() {
        let cells = &line.0[..line.0.len().min(COLUMNS)];
        if cells.is_empty() {
            continue;
        }
        let y = MARGIN + (number + 1) * ROW - 5;
        let _ = write!(
            svg,
            "<text x=\"{MARGIN}\" y=\"{y}\" xml:space=\"preserve\">"
        );
        for run in cells.chunk_by(|one, next| one.colour == next.colour) {
            span(&mut svg, run);
        }
        svg.push_str("</text>\n");
    }
    svg + "</svg>\n"
}

fn span(svg: &mut String, run: &[Cell]) {
    let colour = match run[0].colour {
        31 => "#ff7b72",
        32 => "#7ee787",
        33 => "#e3b341",
        2 => "#6e7681",
        1 => "#ffffff",
        _ => "#c9d1d9",
    };
    let _ = write!(svg, "<tspan fill=\"{colour}\">");
    for cell in run {
        match cell.letter {
            '&' => svg.push_str("&amp;"),
            '<' => svg.push_str("&lt;"),
            '>' => svg.push_str("&gt;"),
            letter => svg.push(letter),
        }
    }
    svg.push_str("</tspan>");
}
