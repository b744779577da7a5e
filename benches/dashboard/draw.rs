//! The picture.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use crate::panel::{Curve, Panel};

/// Pixels of a column and a row of the grid.
const COLUMN: u32 = 50;
const ROW: u32 = 26;
const FONT: &str = "sans-serif";
/// Where Debian's `fonts-dejavu-core` has a font.
const FONT_FILE: &str = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf";
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x09, 0x69, 0xda),
    RGBColor(0xbc, 0x4c, 0x00),
    RGBColor(0x2d, 0xa4, 0x4e),
    RGBColor(0x82, 0x50, 0xdf),
    RGBColor(0xe1, 0xa7, 0x2b),
    RGBColor(0x6e, 0x77, 0x81),
];

pub(crate) fn write(panels: &[(Panel, Vec<Curve>)], file: &Path) -> Result<()> {
    let font = fs::read(FONT_FILE)
        .with_context(|| format!("no font: install fonts-dejavu-core ({FONT_FILE})"))?;
    // Once in this process, for as long as it lives.
    register_font(FONT, FontStyle::Normal, Box::leak(font.into_boxed_slice()))
        .map_err(|_| anyhow!("{FONT_FILE} is no font"))?;
    let rows = panels.iter().map(|(it, _)| it.grid_pos.y + it.grid_pos.h);
    let size = (24 * COLUMN, rows.max().unwrap_or(0) * ROW);
    let picture = SVGBackend::new(file, size).into_drawing_area();
    picture.fill(&WHITE)?;
    for (panel, curves) in panels {
        let place = panel.grid_pos;
        let area = picture.clone().shrink(
            (place.x * COLUMN, place.y * ROW),
            (place.w * COLUMN, place.h * ROW),
        );
        self::panel(&area.margin(4, 4, 6, 6), panel, curves)?;
    }
    picture.present().context("cannot write the picture")
}

fn panel(area: &DrawingArea<SVGBackend<'_>, Shift>, panel: &Panel, curves: &[Curve]) -> Result<()> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let end = points().map(|point| point.0).fold(1.0, f64::max);
    let top = points().map(|point| point.1).fold(0.0, f64::max);
    let top = if top > 0.0 { top * 1.15 } else { 1.0 };
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, (FONT, 15))
        .x_label_area_size(20)
        .y_label_area_size(62)
        .build_cartesian_2d(0.0..end, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.1))
        .x_labels(6)
        .y_labels(5)
        .x_label_formatter(&|seconds| format!("{seconds:.0} s"))
        .y_label_formatter(&|value| panel.value(*value))
        .label_style((FONT, 11))
        .draw()?;
    for (curve, colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        let line = LineSeries::new(curve.points.iter().copied(), colour.stroke_width(2));
        chart
            .draw_series(line)?
            .label(curve.name.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 12, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .label_font((FONT, 10))
        .draw()?;
    Ok(())
}
