//! Plots, each as SVG and PNG.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use crate::cells::{Cell, Modes, cells};
use crate::mode::Mode;
use crate::report::shape;
use crate::sample::{LinkShape, Results, Sample};
use crate::stats::Summary;

const SIZE: (u32, u32) = (960, 540);
const FONT: &str = "sans-serif";
/// Where Debian's `fonts-dejavu-core` has a font; plots are not made without one.
const FONT_FILE: &str = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf";

type Area<'a, B> = DrawingArea<B, Shift>;

/// Writes all plots of `results` into `dir`; their files.
pub(crate) fn write(results: &Results, dir: &Path) -> Result<Vec<PathBuf>> {
    let font = fs::read(FONT_FILE)
        .with_context(|| format!("no font for plots: install fonts-dejavu-core ({FONT_FILE})"))?;
    // Once in this process, for as long as it lives.
    register_font(FONT, FontStyle::Normal, Box::leak(font.into_boxed_slice()))
        .map_err(|_| anyhow!("{FONT_FILE} is no font"))?;
    let cells: Vec<(Cell, Modes<'_>)> = cells(results).into_iter().collect();
    let mut links: Vec<LinkShape> = cells.iter().map(|(cell, _)| cell.link).collect();
    links.sort();
    links.dedup();
    let mut files = Vec::new();
    for link in links {
        let here: Vec<_> = cells.iter().filter(|(cell, _)| cell.link == link).collect();
        let name = format!("ready-{}", file_name(&shape(link)));
        files.extend(both(dir, &name, Plot::Ready(&here, link))?);
    }
    for (cell, modes) in &cells {
        let lines = timelines(modes);
        if lines.len() > 1 {
            let name = format!("bytes-{}-{}", cell.workload, file_name(&shape(cell.link)));
            files.extend(both(dir, &name, Plot::Bytes(cell, &lines))?);
        }
    }
    let points = shares(results, &cells);
    if !points.is_empty() {
        files.extend(both(dir, "cost-by-share", Plot::Share(&points))?);
    }
    Ok(files)
}

fn file_name(text: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    text.replace(", ", "-")
        .chars()
        .map(plain)
        .collect::<String>()
        .replace("--", "-")
}

enum Plot<'p> {
    Ready(&'p [&'p (Cell, Modes<'p>)], LinkShape),
    Bytes(&'p Cell, &'p [(Mode, &'p Sample)]),
    Share(&'p [Point]),
}

fn both(dir: &Path, name: &str, plot: Plot<'_>) -> Result<[PathBuf; 2]> {
    let files = [
        dir.join(format!("{name}.svg")),
        dir.join(format!("{name}.png")),
    ];
    draw(&SVGBackend::new(&files[0], SIZE).into_drawing_area(), &plot)?;
    draw(
        &BitMapBackend::new(&files[1], SIZE).into_drawing_area(),
        &plot,
    )?;
    Ok(files)
}

fn draw<B: DrawingBackend>(area: &Area<'_, B>, plot: &Plot<'_>) -> Result<()>
where
    B::ErrorType: 'static,
{
    area.fill(&WHITE)?;
    match plot {
        Plot::Ready(cells, link) => ready(area, cells, *link),
        Plot::Bytes(cell, lines) => bytes(area, cell, lines),
        Plot::Share(points) => share(area, points),
    }?;
    area.present().context("cannot write a plot")
}

fn color(mode: Mode) -> RGBColor {
    match mode {
        Mode::Overlayfs => RGBColor(0x6e, 0x77, 0x81),
        Mode::FullPull => RGBColor(0xbc, 0x4c, 0x00),
        Mode::Lazy => RGBColor(0x09, 0x69, 0xda),
        Mode::OnDemand => RGBColor(0x54, 0xae, 0xff),
        Mode::Ztocs => RGBColor(0x9a, 0x67, 0x00),
        Mode::Prefetch => RGBColor(0x05, 0x3f, 0x8f),
        Mode::Original => RGBColor(0x82, 0x50, 0xdf),
        Mode::Soci04 => RGBColor(0xbf, 0x39, 0x89),
        Mode::Stargz => RGBColor(0xe1, 0xa7, 0x2b),
        Mode::Nydus => RGBColor(0x2d, 0xa4, 0x4e),
        Mode::NydusZran => RGBColor(0x8d, 0xd3, 0xa0),
        Mode::Warm => RGBColor(0x1a, 0x7f, 0x37),
    }
}

/// Bars of medians with quartiles, workloads side by side.
#[expect(clippy::cast_precision_loss, reason = "a few bars")]
fn ready<B: DrawingBackend>(
    area: &Area<'_, B>,
    cells: &[&(Cell, Modes<'_>)],
    link: LinkShape,
) -> Result<()>
where
    B::ErrorType: 'static,
{
    let mut modes: Vec<Mode> = cells
        .iter()
        .flat_map(|(_, modes)| modes.iter().map(|(mode, _)| mode))
        .collect();
    modes.sort();
    modes.dedup();
    let summaries = |mode| {
        let of_cell = move |(at, (_, modes)): (usize, &&(Cell, Modes<'_>))| {
            Some((at, Summary::of(&modes.ready(mode))?))
        };
        cells
            .iter()
            .enumerate()
            .filter_map(of_cell)
            .collect::<Vec<_>>()
    };
    let highest = modes
        .iter()
        .flat_map(|&mode| summaries(mode))
        .map(|(_, summary)| summary.quartiles.1);
    let highest = highest.fold(0.1, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .caption(format!("seconds to ready, {}", shape(link)), (FONT, 20))
        .margin(16)
        .x_label_area_size(32)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..cells.len() as f64, 0.0..highest)?;
    let label = |x: &f64| {
        let middle = (x.fract() - 0.5).abs() < 0.01;
        let cell = cells
            .iter()
            .enumerate()
            .find(|(at, _)| (*at as f64 - x.floor()).abs() < 0.01);
        cell.filter(|_| middle)
            .map_or_else(String::new, |(_, (cell, _))| cell.workload.clone())
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(cells.len() * 2 + 1)
        .x_label_formatter(&label)
        .y_desc("seconds")
        .label_style((FONT, 14))
        .draw()?;
    let width = 0.8 / modes.len() as f64;
    for (place, &mode) in modes.iter().enumerate() {
        let style = color(mode);
        let left = |at: usize| at as f64 + 0.1 + place as f64 * width;
        let bars = summaries(mode).into_iter().map(|(at, summary)| {
            let corners = [(left(at), 0.0), (left(at) + width * 0.9, summary.median)];
            Rectangle::new(corners, style.filled())
        });
        chart
            .draw_series(bars)?
            .label(mode.name())
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], style.filled()));
        let whiskers = summaries(mode).into_iter().map(|(at, summary)| {
            let x = left(at) + width * 0.45;
            PathElement::new(
                [(x, summary.quartiles.0), (x, summary.quartiles.1)],
                BLACK.stroke_width(2),
            )
        });
        chart.draw_series(whiskers)?;
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)
}

/// One typical sample of each mode, the one whose time is nearest to the median.
fn timelines<'r>(modes: &Modes<'r>) -> Vec<(Mode, &'r Sample)> {
    let typical = |(mode, samples): (Mode, &[&'r Sample])| {
        if !mode.is_first_start() {
            return None;
        }
        let median = Summary::of(&modes.ready(mode))?.median;
        let far = |sample: &Sample| (sample.ready_s - median).abs();
        let with_line = samples.iter().filter(|sample| sample.timeline.len() > 1);
        let nearest = with_line.min_by(|one, other| far(one).total_cmp(&far(other)))?;
        Some((mode, *nearest))
    };
    modes.iter().filter_map(typical).collect()
}

/// Bytes come through the link by time, with a mark where the workload was ready.
#[expect(clippy::cast_precision_loss, reason = "drawn, not computed with")]
fn bytes<B: DrawingBackend>(
    area: &Area<'_, B>,
    cell: &Cell,
    lines: &[(Mode, &Sample)],
) -> Result<()>
where
    B::ErrorType: 'static,
{
    let points = |sample: &Sample| -> Vec<(f64, f64)> {
        let points = sample
            .timeline
            .iter()
            .map(|&(time, bytes)| (time, bytes as f64 / 1e6));
        points.collect()
    };
    let all: Vec<(f64, f64)> = lines
        .iter()
        .flat_map(|(_, sample)| points(sample))
        .collect();
    let longest = lines
        .iter()
        .map(|(_, sample)| sample.ready_s)
        .fold(0.1, f64::max)
        * 1.1;
    let most = all.iter().map(|point| point.1).fold(0.1, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .caption(
            format!(
                "{}: bytes over time, {}; dots: ready",
                cell.workload,
                shape(cell.link)
            ),
            (FONT, 20),
        )
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..longest, 0.0..most)?;
    let mut mesh = chart.configure_mesh();
    mesh.x_desc("seconds from the pull's start")
        .y_desc("MB")
        .label_style((FONT, 14))
        .draw()?;
    for (mode, sample) in lines {
        let style = color(*mode);
        let line = points(sample);
        let at_ready = line
            .iter()
            .take_while(|point| point.0 <= sample.ready_s)
            .last();
        let mark = (sample.ready_s, at_ready.map_or(0.0, |point| point.1));
        chart
            .draw_series(LineSeries::new(line, style.stroke_width(2)))?
            .label(mode.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], style.stroke_width(2)));
        chart.draw_series([Circle::new(mark, 5, style.filled())])?;
    }
    legend(&mut chart, SeriesLabelPosition::LowerRight)
}

/// A cell by what share of the image its start needs and what it costs against a full pull.
struct Point {
    workload: String,
    share: f64,
    cost: f64,
}

#[expect(clippy::cast_precision_loss, reason = "drawn, not computed with")]
fn shares(results: &Results, cells: &[(Cell, Modes<'_>)]) -> Vec<Point> {
    let point = |(cell, modes): &(Cell, Modes<'_>)| {
        let about = results
            .workloads
            .iter()
            .find(|about| about.name == cell.workload)?;
        let needed = modes.values(Mode::OnDemand, |sample| sample.bytes as f64);
        let needed = needed.into_iter().reduce(f64::min)?;
        let lazy = Summary::of(&modes.ready(Mode::Lazy))?.median;
        let full = Summary::of(&modes.ready(Mode::Overlayfs))?.median;
        Some(Point {
            workload: format!("{}, {}", cell.workload, shape(cell.link)),
            share: (needed / about.image_bytes? as f64).min(1.0),
            cost: lazy / full,
        })
    };
    cells.iter().filter_map(point).collect()
}

fn share<B: DrawingBackend>(area: &Area<'_, B>, points: &[Point]) -> Result<()>
where
    B::ErrorType: 'static,
{
    let highest = points.iter().map(|point| point.cost).fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .caption(
            "time to ready, lazy / full pull, by the share of the image that a start needs",
            (FONT, 18),
        )
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..1.05, 0.0..highest)?;
    let mut mesh = chart.configure_mesh();
    mesh.x_desc("bytes fetched / bytes of the image")
        .y_desc("lazy / full")
        .label_style((FONT, 14))
        .draw()?;
    chart.draw_series(LineSeries::new(
        [(0.0, 1.0), (1.05, 1.0)],
        BLACK.stroke_width(1),
    ))?;
    chart.draw_series(points.iter().map(|point| {
        EmptyElement::at((point.share, point.cost))
            + Circle::new((0, 0), 4, color(Mode::Lazy).filled())
            + Text::new(point.workload.clone(), (8, -6), (FONT, 12))
    }))?;
    Ok(())
}

type Chart<'a, 'b, B> = ChartContext<
    'a,
    B,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

fn legend<'a, B: DrawingBackend + 'a>(
    chart: &mut Chart<'a, '_, B>,
    position: SeriesLabelPosition,
) -> Result<()>
where
    B::ErrorType: 'static,
{
    let mut labels = chart.configure_series_labels();
    labels
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.2))
        .label_font((FONT, 14));
    labels.position(position).draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn file_names_are_plain() {
        assert_eq!(file_name("1 Gbit/s, 20 ms"), "1-gbit-s-20-ms");
    }
}
