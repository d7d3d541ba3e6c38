//! Pictures of what came of experiments, as SVG.

use std::fmt::Write;

use super::tool::Run;
use crate::cli::figures;

const WIDTH: f64 = 760.0;
const PANEL_HEIGHT: f64 = 380.0;
/// Around the area with the curves.
const LEFT: f64 = 72.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 52.0;
/// One after the other for the curves.
const COLOURS: [&str; 6] = ["#2f7ed8", "#c4572e", "#2e8b57", "#8b5cb5", "#b08d2e", "#5b6770"];
const LEGEND_LINE: f64 = 18.0;
/// With at most so many decades an axis has labels in between.
const DECADES_FINE: f64 = 3.5;

/// Where numbers are on an axis.
#[derive(Clone, Copy, Debug)]
enum Axis {
    /// From zero to a number.
    Linear(f64),
    /// From one number to another.
    Log(f64, f64),
}

impl Axis {
    /// A logarithmic axis on which all of these have room.
    fn log(numbers: impl Iterator<Item = f64>) -> Self {
        let (min, max) = numbers
            .filter(|number| *number > 0.0)
            .fold((f64::MAX, f64::MIN), |(min, max), number| (min.min(number), max.max(number)));
        if min > max {
            return Self::Log(1.0, 10.0);
        }
        // A little air on both sides.
        Self::Log(min / 1.25, max * 1.25)
    }

    /// The place of a number, from zero to one.
    fn place(self, number: f64) -> f64 {
        let place = match self {
            Self::Linear(max) => number / max,
            Self::Log(min, max) => (number / min).ln() / (max / min).ln(),
        };
        place.clamp(0.0, 1.0)
    }

    /// Where lines are drawn, and which of them have a label.
    fn ticks(self) -> Vec<(f64, bool)> {
        let (min, max) = match self {
            Self::Linear(max) => {
                return (0..=5_u32).map(|i| (max * f64::from(i) / 5.0, true)).collect();
            }
            Self::Log(min, max) => (min, max),
        };
        let is_fine = (max / min).log10() <= DECADES_FINE;
        let mut ticks = Vec::new();
        let mut decade = 10_f64.powf(min.log10().floor());
        while decade <= max {
            let steps = [(1.0, true), (2.0, is_fine), (5.0, is_fine)];
            let of_decade = steps.map(|(step, is_named)| (decade * step, is_named));
            ticks.extend(of_decade.iter().filter(|(at, _)| (min..=max).contains(at)));
            decade *= 10.0;
        }
        ticks
    }
}

/// A plot with its axes.
struct Panel {
    top: f64,
    title: String,
    x: Axis,
    y: Axis,
    x_title: &'static str,
    x_label: fn(f64) -> String,
    y_label: fn(f64) -> String,
}

impl Panel {
    fn x(&self, number: f64) -> f64 {
        LEFT + self.x.place(number) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, number: f64) -> f64 {
        let height = PANEL_HEIGHT - TOP - BOTTOM;
        self.top + TOP + (1.0 - self.y.place(number)) * height
    }

    /// The title, the lines behind the curves and their labels.
    fn draw(&self, svg: &mut String) {
        let (left, right) = (LEFT, WIDTH - RIGHT);
        let (top, bottom) = (self.top + TOP, self.top + PANEL_HEIGHT - BOTTOM);
        text(svg, (left, self.top + 26.0), "font-size=\"15\"", &self.title);
        for (at, is_named) in self.x.ticks() {
            let x = self.x(at);
            line(svg, (x, top), (x, bottom));
            if is_named {
                let label = (self.x_label)(at);
                text(svg, (x, bottom + 18.0), "text-anchor=\"middle\" fill=\"#555\"", &label);
            }
        }
        for (at, is_named) in self.y.ticks() {
            let y = self.y(at);
            line(svg, (left, y), (right, y));
            if is_named {
                let label = (self.y_label)(at);
                text(svg, (left - 8.0, y + 4.0), "text-anchor=\"end\" fill=\"#555\"", &label);
            }
        }
        let _ = writeln!(
            svg,
            "<rect x=\"{left}\" y=\"{top}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#999\"/>",
            right - left,
            bottom - top,
        );
        let middle = f64::midpoint(left, right);
        let style = "text-anchor=\"middle\" fill=\"#333\"";
        text(svg, (middle, bottom + 38.0), style, self.x_title);
    }

    fn curve(&self, svg: &mut String, colour: &str, style: &str, points: &[(f64, f64)]) {
        let mut path = String::new();
        for (x, y) in points {
            let _ = write!(path, "{:.1},{:.1} ", self.x(*x), self.y(*y));
        }
        let _ = writeln!(
            svg,
            "<polyline class=\"curve\" points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" \
             stroke-linejoin=\"round\" {style}/>",
            path.trim_end(),
        );
    }

    /// Names of curves, the last one `up` from the bottom of the panel or the first one below its top.
    fn legend(&self, svg: &mut String, x: f64, at_bottom: bool, names: &[(&str, &str, String)]) {
        let lines = names.iter().fold(0.0, |sum, _| sum + LEGEND_LINE);
        let mut y = if at_bottom {
            self.top + PANEL_HEIGHT - BOTTOM - lines
        } else {
            self.top + TOP + LEGEND_LINE
        };
        for (colour, style, name) in names {
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\" stroke-width=\"3\" {style}/>",
                x + 22.0,
            );
            text(svg, (x + 30.0, y + 4.0), "", name);
            y += LEGEND_LINE;
        }
    }
}

fn line(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
    let _ = writeln!(
        svg,
        "<line x1=\"{x1:.1}\" x2=\"{x2:.1}\" y1=\"{y1:.1}\" y2=\"{y2:.1}\" stroke=\"#e4e4e4\"/>"
    );
}

fn text(svg: &mut String, (x, y): (f64, f64), style: &str, text: &str) {
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{text}</text>");
}

/// All plots, one below the other.
pub(super) fn page(runs: &[Run]) -> String {
    let panels = if runs.len() > 1 { 2.0 } else { 1.0 };
    let height = panels * PANEL_HEIGHT;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
    );
    convergence(&mut svg, runs);
    if runs.len() > 1 {
        cost(&mut svg, runs);
    }
    svg += "</svg>\n";
    svg
}

/// The share of members that have a write, against the time since it was accepted.
fn convergence(svg: &mut String, runs: &[Run]) {
    let curves: Vec<Vec<(f64, f64)>> = runs
        .iter()
        .map(|run| {
            let curve = run.outcome.curve().into_iter();
            // A delay of nothing has no place on the axis.
            curve
                .map(|(micros, share)| (f64::from(micros.max(1)) / 1000.0, share * 100.0))
                .collect()
        })
        .collect();
    let panel = Panel {
        top: 0.0,
        title: "Members that have a write, in percent".to_owned(),
        x: Axis::log(curves.iter().flatten().map(|(millis, _)| *millis)),
        y: Axis::Linear(100.0),
        x_title: "time since the write was accepted",
        x_label: millis,
        y_label: |percent| format!("{percent:.0} %"),
    };
    panel.draw(svg);
    let mut names = Vec::new();
    for ((run, curve), colour) in runs.iter().zip(&curves).zip(COLOURS.iter().cycle()) {
        panel.curve(svg, colour, "", curve);
        names.push((*colour, "", format!("{} members", run.outcome.members)));
    }
    panel.legend(svg, WIDTH - RIGHT - 150.0, true, &names);
}

fn millis(millis: f64) -> String {
    if millis >= 1000.0 { format!("{} s", millis / 1000.0) } else { format!("{millis} ms") }
}

/// What a member sends, against how many there are.
#[expect(clippy::cast_precision_loss, reason = "a place on an axis")]
fn cost(svg: &mut String, runs: &[Run]) {
    let mut runs: Vec<_> = runs.iter().map(|run| &run.outcome).collect();
    runs.sort_by_key(|outcome| outcome.members);
    let curve = |bytes: fn(&super::spread::Outcome) -> f64| -> Vec<(f64, f64)> {
        runs.iter().map(|outcome| (outcome.members as f64, bytes(outcome))).collect()
    };
    let idle = curve(|outcome| outcome.idle_bytes_per_second);
    let busy = curve(|outcome| outcome.busy_bytes_per_second);
    let panel = Panel {
        top: PANEL_HEIGHT,
        title: "What a member sends, in bytes per second".to_owned(),
        x: Axis::log(idle.iter().map(|(members, _)| *members)),
        y: Axis::log(idle.iter().chain(&busy).map(|(_, bytes)| *bytes)),
        x_title: "members",
        x_label: |members| format!("{members:.0}"),
        y_label: figures::bytes,
    };
    panel.draw(svg);
    let mut names = Vec::new();
    for (name, curve, colour) in [("busy", busy, COLOURS[1]), ("idle", idle, COLOURS[0])] {
        panel.curve(svg, colour, "", &curve);
        for (members, bytes) in &curve {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\"/>",
                panel.x(*members),
                panel.y(*bytes),
            );
        }
        names.push((colour, "", name.to_owned()));
    }
    panel.legend(svg, LEFT + 14.0, false, &names);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_room_for_everything() {
        let axis = Axis::log([0.5, 0.0, 120.0].into_iter());
        assert!(axis.place(0.5) > 0.0 && axis.place(120.0) < 1.0);
        assert!(axis.place(0.5) < axis.place(1.0));
        let named: Vec<_> = axis.ticks().into_iter().filter(|(_, is_named)| *is_named).collect();
        let first: Vec<_> = named.iter().take(3).map(|(at, _)| millis(*at)).collect();
        assert_eq!(first, ["0.5 ms", "1 ms", "2 ms"]);
        assert_eq!(Axis::log([].into_iter()).ticks().len(), 4);
    }
}
