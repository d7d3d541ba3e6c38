//! Bars as SVG: figures on a logarithmic scale, and how many times etcd's they are.

use std::fmt::Write;

use crate::measure::Figures;
use crate::report::{Cell, Results};
use crate::server::Kind;

const BAR: usize = 14;
const GROUP_GAP: usize = 18;
const LEFT: usize = 250;
const WIDTH: usize = 560;
const RIGHT: usize = 90;
const TOP: usize = 56;
const KINDS: [(Kind, &str); 3] =
    [(Kind::Starling, "#2f7ed8"), (Kind::Etcd, "#c4572e"), (Kind::Noop, "#b5b5b5")];

/// A plot: one figure of all loads.
pub fn bars(results: &Results, title: &str, field: fn(&Figures) -> f64) -> String {
    let height = TOP + results.cells.iter().map(group_height).sum::<usize>() + 10;
    let values = results.cells.iter().flat_map(|cell| KINDS.map(|(kind, _)| cell.of(kind)));
    let values: Vec<f64> = values.flatten().map(|figures| field(&figures)).collect();
    let least = values.iter().copied().fold(f64::MAX, f64::min).max(1e-3).log10().floor();
    let most = values.iter().copied().fold(f64::MIN, f64::max).max(1e-2).log10().ceil();
    let scale = Scale { least, most: most.max(least + 1.0) };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        LEFT + WIDTH + RIGHT,
    );
    head(&mut svg, title, &scale, height);
    let mut y = TOP;
    for cell in &results.cells {
        group(&mut svg, cell, &scale, field, y);
        y += group_height(cell);
    }
    svg += "</svg>\n";
    svg
}

struct Scale {
    least: f64,
    most: f64,
}

impl Scale {
    fn width(&self, value: f64) -> f64 {
        let part = (value.max(1e-3).log10() - self.least) / (self.most - self.least);
        part.clamp(0.0, 1.0) * WIDTH as f64
    }
}

fn group_height(cell: &Cell) -> usize {
    cell.rounds.len() * BAR + GROUP_GAP
}

fn head(svg: &mut String, title: &str, scale: &Scale, height: usize) {
    let _ = writeln!(svg, "<text x=\"10\" y=\"20\" font-size=\"15\">{title}</text>");
    for (i, (kind, color)) in KINDS.iter().enumerate() {
        let x = 10 + i * 90;
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"31\" width=\"12\" height=\"12\" fill=\"{color}\"/><text x=\"{}\" y=\"42\">{kind}</text>",
            x + 17
        );
    }
    let mut power = scale.least;
    while power <= scale.most {
        let x = LEFT as f64 + scale.width(10_f64.powf(power));
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{}\" y2=\"{height}\" stroke=\"#ddd\"/><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#777\">{}</text>",
            TOP - 4,
            TOP - 8,
            10_f64.powf(power)
        );
        power += 1.0;
    }
}

fn group(svg: &mut String, cell: &Cell, scale: &Scale, field: fn(&Figures) -> f64, top: usize) {
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
        LEFT - 8,
        top + cell.rounds.len() * BAR / 2 + 4,
        cell.label()
    );
    let mut y = top;
    for (kind, color) in KINDS {
        let Some(figures) = cell.of(kind) else { continue };
        let (value, width) = (field(&figures), scale.width(field(&figures)));
        let digits = if value < 100.0 { 1 } else { 0 };
        let _ = writeln!(
            svg,
            "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" fill=\"{color}\"/><text x=\"{:.1}\" y=\"{}\" font-size=\"11\">{value:.digits$}</text>",
            BAR - 2,
            LEFT as f64 + width + 4.0,
            y + BAR - 4
        );
        y += BAR;
    }
}

const PANEL: f64 = 300.0;
const PANEL_GAP: f64 = 70.0;
const ROW: usize = 24;
/// Bars of ratios end here, whatever they show.
const RATIO_MAX: f64 = 6.0;

/// A plot for readers in a hurry: loads of `clients` clients, as ratios to etcd.
pub fn ratios(results: &Results, clients: usize) -> String {
    let of = |cell: &&Cell| cell.clients == clients && cell.of(Kind::Etcd).is_some();
    let cells: Vec<&Cell> = results.cells.iter().filter(of).collect();
    let height = TOP + cells.len() * ROW + 10;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{:.0}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        LEFT as f64 + 2.0 * PANEL + 2.0 * PANEL_GAP
    );
    let throughput: fn(&Figures) -> f64 = |figures| figures.per_second;
    let cpu: fn(&Figures) -> f64 = |figures| figures.cpu_us;
    let panels = [
        (LEFT as f64, "Operations a second, etcd = 1", throughput),
        (LEFT as f64 + PANEL + PANEL_GAP, "Server CPU per operation, etcd = 1", cpu),
    ];
    for (left, title, field) in panels {
        panel(&mut svg, &cells, (left, height), title, field);
    }
    for (i, cell) in cells.iter().enumerate() {
        let y = TOP + i * ROW + 16;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{}</text>",
            LEFT - 8,
            cell.label()
        );
    }
    svg += "</svg>\n";
    svg
}

fn panel(
    svg: &mut String,
    cells: &[&Cell],
    (left, height): (f64, usize),
    title: &str,
    field: fn(&Figures) -> f64,
) {
    let ratios: Vec<Option<f64>> = cells.iter().map(|cell| cell.ratio(Kind::Etcd, field)).collect();
    let most = ratios.iter().flatten().copied().fold(1.0, f64::max).min(RATIO_MAX);
    let _ = writeln!(svg, "<text x=\"{left}\" y=\"22\" font-size=\"15\">{title}</text>");
    for (i, ratio) in ratios.iter().enumerate() {
        let (Some(ratio), y) = (ratio, TOP + i * ROW) else { continue };
        let (width, color) = (ratio.min(most) / most * PANEL, KINDS[0].1);
        let _ = writeln!(
            svg,
            "<rect x=\"{left}\" y=\"{}\" width=\"{width:.1}\" height=\"{}\" fill=\"{color}\"/><text x=\"{:.1}\" y=\"{}\">{ratio:.2}</text>",
            y + 4,
            ROW - 8,
            left + width + 5.0,
            y + 16
        );
    }
    let one = left + PANEL / most;
    let _ = writeln!(
        svg,
        "<line x1=\"{one:.1}\" x2=\"{one:.1}\" y1=\"{}\" y2=\"{height}\" stroke=\"{}\" stroke-width=\"2\"/><text x=\"{one:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"{}\">etcd</text>",
        TOP - 4,
        KINDS[1].1,
        TOP - 8,
        KINDS[1].1
    );
}
