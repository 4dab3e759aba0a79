//! Plots as SVG: medians, with a bar from the least to the most of their repeats.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::table::Spread;
use crate::{Failure, Result};

const SIZE: (u32, u32) = (900, 520);
const COLOURS: [RGBColor; 10] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(23, 190, 207),
    RGBColor(140, 86, 75),
    RGBColor(227, 119, 194),
    RGBColor(127, 127, 127),
    RGBColor(188, 189, 34),
];

/// What is drawn.
#[derive(Clone, Debug)]
pub(crate) struct Plot {
    /// Tells it from the report's other plots.
    pub(crate) name: &'static str,
    pub(crate) title: String,
    pub(crate) x: &'static str,
    pub(crate) y: &'static str,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// A line for each name; the y axis is logarithmic.
    Lines(Vec<(String, Vec<(f64, Spread)>)>),
    /// A bar for each name, from zero.
    Bars(Vec<(String, Spread)>),
}

fn colour(at: usize) -> RGBColor {
    COLOURS[at % COLOURS.len()]
}

fn failure(error: impl std::fmt::Display) -> Failure {
    format!("a plot cannot be drawn: {error}").into()
}

impl Plot {
    pub(crate) fn draw(&self, path: &Path) -> Result<()> {
        let area = SVGBackend::new(path, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(failure)?;
        match &self.kind {
            Kind::Lines(lines) => self.lines(&area, lines)?,
            Kind::Bars(bars) => self.bars(&area, bars)?,
        }
        area.present().map_err(failure)
    }

    fn lines(&self, area: &DrawingArea<SVGBackend<'_>, Shift>, lines: &[(String, Vec<(f64, Spread)>)]) -> Result<()> {
        // What is nothing has no place on a logarithmic axis.
        let points = lines.iter().flat_map(|(_, points)| points).filter(|(_, spread)| spread.least > 0.0);
        let (mut last, mut low, mut high) = (0.0_f64, f64::INFINITY, 0.0_f64);
        for (x, spread) in points {
            last = last.max(*x);
            low = low.min(spread.least);
            high = high.max(spread.most);
        }
        if low > high {
            return Ok(());
        }
        let x = -0.02 * last.max(1.0)..last.max(1.0) * 1.02;
        let y = (low / 1.5..high * 1.5).log_scale();
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(86)
            .build_cartesian_2d(x, y)
            .map_err(failure)?;
        let number = |value: &f64| tick(*value);
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(self.x).y_desc(self.y).x_label_formatter(&number).y_label_formatter(&number);
        mesh.max_light_lines(1).light_line_style(WHITE).draw().map_err(failure)?;
        for (at, (name, points)) in lines.iter().enumerate() {
            let colour = colour(at);
            let points: Vec<_> = points.iter().filter(|(_, spread)| spread.least > 0.0).copied().collect();
            let line = points.iter().map(|(x, spread)| (*x, spread.median));
            let drawn = chart.draw_series(LineSeries::new(line, colour.stroke_width(2))).map_err(failure)?;
            drawn.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
            let bars = points.iter().map(|(x, Spread { median, least, most })| {
                ErrorBar::new_vertical(*x, *least, *median, *most, colour.filled(), 6)
            });
            chart.draw_series(bars).map_err(failure)?;
        }
        let mut legend = chart.configure_series_labels();
        legend.background_style(WHITE.mix(0.85)).border_style(BLACK.mix(0.4)).draw().map_err(failure)
    }

    fn bars(&self, area: &DrawingArea<SVGBackend<'_>, Shift>, bars: &[(String, Spread)]) -> Result<()> {
        let most = bars.iter().map(|(_, spread)| spread.most).fold(0.0, f64::max);
        if most <= 0.0 {
            return Ok(());
        }
        let count = i32::try_from(bars.len())?;
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(240)
            .build_cartesian_2d(0.0..most * 1.05, (0..count).into_segmented())
            .map_err(failure)?;
        let name = |value: &SegmentValue<i32>| match value {
            SegmentValue::CenterOf(at) => {
                usize::try_from(*at).ok().and_then(|at| bars.get(at)).map_or_else(String::new, |(name, _)| name.clone())
            }
            SegmentValue::Exact(_) | SegmentValue::Last => String::new(),
        };
        let number = |value: &f64| tick(*value);
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(self.x).y_labels(bars.len() + 1).x_label_formatter(&number).y_label_formatter(&name);
        mesh.disable_y_mesh().max_light_lines(1).light_line_style(WHITE).draw().map_err(failure)?;
        let filled = (0..count).zip(bars).zip(0..).map(|((at, (_, spread)), index)| {
            let corners = [(0.0, SegmentValue::Exact(at)), (spread.median, SegmentValue::Exact(at + 1))];
            let mut bar = Rectangle::new(corners, colour(index).mix(0.75).filled());
            bar.set_margin(4, 4, 0, 0);
            bar
        });
        chart.draw_series(filled).map_err(failure)?;
        let spreads = (0..count).zip(bars).map(|(at, (_, Spread { median, least, most }))| {
            ErrorBar::new_horizontal(SegmentValue::CenterOf(at), *least, *median, *most, BLACK.filled(), 8)
        });
        chart.draw_series(spreads).map_err(failure)?;
        Ok(())
    }
}

/// A number as short as it can be read.
fn tick(value: f64) -> String {
    let (value, unit) = match value.abs() {
        size if size >= 1e9 => (value / 1e9, "G"),
        size if size >= 1e6 => (value / 1e6, "M"),
        size if size >= 1e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = format!("{value:.2}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plots_are_drawn() {
        let folder = tempfile::tempdir().expect("a folder");
        let spread = Spread { median: 2000.0, least: 1000.0, most: 3000.0 };
        let lines = vec![("tagged".to_owned(), vec![(0.0, spread), (100.0, spread)])];
        for (name, kind) in [
            ("lines", Kind::Lines(lines)),
            ("bars", Kind::Bars(vec![("tagged".into(), spread), ("sync".into(), spread)])),
        ] {
            let path = folder.path().join(name);
            Plot { name, title: "Writes".into(), x: "ms", y: "1/s", kind }.draw(&path).expect("drawn");
            let text = std::fs::read_to_string(path).expect("a file");
            assert!(text.starts_with("<svg") && text.contains("tagged"), "{text}");
        }
        assert_eq!([0.0, 0.25, 12.0, 1500.0, 2e6].map(tick), ["0", "0.25", "12", "1.5k", "2M"]);
    }
}
