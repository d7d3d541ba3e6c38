//! Bars on a logarithmic scale, as SVG.

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
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{} x{}, {} k keys</text>",
        LEFT - 8,
        top + cell.rounds.len() * BAR / 2 + 4,
        cell.work,
        cell.clients,
        cell.keys / 1000
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
