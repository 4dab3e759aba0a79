//! What an experiment found: every repeat's figures and raw data, in tables of Markdown, in JSON, and in plots.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use serde_json::{Value, json};

use crate::experiment::Plan;
use crate::plot::Plot;
use crate::table::{Spread, table};
use crate::{Result, machine};

/// A column of figures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metric {
    /// As it is called in the JSON.
    pub(crate) name: &'static str,
    /// As it is called in the table, with its unit.
    pub(crate) head: &'static str,
    /// Behind the point.
    pub(crate) digits: usize,
}

impl Metric {
    pub(crate) const fn new(name: &'static str, head: &'static str, digits: usize) -> Metric {
        Metric { name, head, digits }
    }
}

/// What one repeat gave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    pub(crate) figures: BTreeMap<&'static str, f64>,
    /// As the processes told it.
    pub(crate) raw: Value,
}

/// All repeats of one thing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    /// A value for each of the table's keys.
    pub(crate) key: Vec<String>,
    /// By repeat; `None` is one that failed.
    pub(crate) repeats: Vec<Option<Measured>>,
    /// Why there is nothing.
    pub(crate) skipped: Option<String>,
    pub(crate) failures: Vec<String>,
}

impl Row {
    pub(crate) fn new<K: Into<String>>(key: impl IntoIterator<Item = K>) -> Row {
        Row { key: key.into_iter().map(Into::into).collect(), ..Row::default() }
    }

    /// A row of which only the reason is known why it is empty.
    pub(crate) fn skipped<K: Into<String>>(key: impl IntoIterator<Item = K>, why: &str) -> Row {
        Row { skipped: Some(why.into()), ..Row::new(key) }
    }

    /// Median and extremes of a figure, where any repeat has it.
    pub(crate) fn spread(&self, name: &str) -> Option<Spread> {
        let figures = self.repeats.iter().flatten().filter_map(|measured| measured.figures.get(name).copied());
        spread(figures)
    }
}

fn spread(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
    let values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    (!values.is_empty()).then(|| Spread::of(values))
}

/// Rows of the same keys and figures.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) keys: &'static [&'static str],
    pub(crate) metrics: &'static [Metric],
    pub(crate) rows: Vec<Row>,
}

impl Table {
    /// The row with this key.
    pub(crate) fn row(&self, key: &[&str]) -> Option<&Row> {
        self.rows.iter().find(|row| row.key == key)
    }

    fn markdown(&self) -> String {
        let head: Vec<&str> = self.keys.iter().copied().chain(self.metrics.iter().map(|metric| metric.head)).collect();
        let rows: Vec<Vec<String>> = self.rows.iter().map(|row| self.cells(row)).collect();
        format!("## {}\n\n{}", self.title, table(&head, &rows))
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let mut cells = row.key.clone();
        if row.repeats.iter().flatten().next().is_none() {
            let why = row.skipped.as_deref().or(row.failures.first().map(String::as_str)).unwrap_or("not measured");
            cells.push(if row.skipped.is_some() { format!("skipped: {why}") } else { format!("failed: {why}") });
            cells.extend(self.metrics.iter().skip(1).map(|_| String::new()));
            return cells;
        }
        let show = |metric: &Metric| row.spread(metric.name).map_or_else(String::new, |it| it.show(metric.digits));
        cells.extend(self.metrics.iter().map(show));
        cells
    }

    fn json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(|row| self.row_json(row)).collect();
        json!({ "title": self.title, "rows": rows })
    }

    fn row_json(&self, row: &Row) -> Value {
        let key: BTreeMap<_, _> = self.keys.iter().zip(&row.key).collect();
        let repeat = |measured: &Option<Measured>| match measured {
            Some(Measured { figures, raw }) => json!({ "figures": figures, "raw": raw }),
            None => Value::Null,
        };
        let repeats: Vec<Value> = row.repeats.iter().map(repeat).collect();
        json!({ "key": key, "skipped": row.skipped, "failures": row.failures, "repeats": repeats })
    }
}

/// Something that is to be seen in the figures: a ratio, by repeat, and what it should be.
#[derive(Clone, Debug)]
pub(crate) struct Show {
    pub(crate) what: String,
    pub(crate) bar: String,
    pub(crate) values: Vec<f64>,
}

impl Show {
    /// Of two rows, repeat by repeat.
    pub(crate) fn of(
        what: impl Into<String>,
        bar: &str,
        rows: (Option<&Row>, Option<&Row>),
        ratio: impl Fn(&BTreeMap<&'static str, f64>, &BTreeMap<&'static str, f64>) -> f64,
    ) -> Show {
        let values = match rows {
            (Some(one), Some(other)) => {
                let pairs = one.repeats.iter().zip(&other.repeats);
                pairs.filter_map(|(one, other)| Some(ratio(&one.as_ref()?.figures, &other.as_ref()?.figures))).collect()
            }
            _ => Vec::new(),
        };
        Show { what: what.into(), bar: bar.into(), values }
    }

    /// A figure of one row beside the same of another.
    pub(crate) fn ratio(what: impl Into<String>, bar: &str, rows: (Option<&Row>, Option<&Row>), name: &str) -> Show {
        let get = |figures: &BTreeMap<&'static str, f64>| figures.get(name).copied().unwrap_or(f64::NAN);
        Show::of(what, bar, rows, |one, other| get(one) / get(other))
    }

    /// A figure as it is.
    pub(crate) fn figure(what: impl Into<String>, bar: &str, row: Option<&Row>, name: &str) -> Show {
        Show::of(what, bar, (row, row), |figures, _| figures.get(name).copied().unwrap_or(f64::NAN))
    }
}

/// All that an experiment found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// The name of its files.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// What was measured, and how; Markdown.
    pub(crate) about: String,
    pub(crate) tables: Vec<Table>,
    pub(crate) shows: Vec<Show>,
    pub(crate) plots: Vec<Plot>,
}

impl Report {
    /// Measurements that failed.
    pub(crate) fn failures(&self) -> usize {
        self.tables.iter().flat_map(|table| &table.rows).map(|row| row.failures.len()).sum()
    }

    /// Writes the three kinds of files into the plan's folder.
    pub(crate) fn write(&self, plan: &Plan) -> Result<()> {
        fs::create_dir_all(&plan.out)?;
        fs::write(plan.out.join(format!("{}.md", self.name)), self.markdown(plan))?;
        let text = serde_json::to_string_pretty(&self.json(plan))?;
        fs::write(plan.out.join(format!("{}.json", self.name)), text + "\n")?;
        for plot in &self.plots {
            plot.draw(&plan.out.join(self.svg(plot)))?;
        }
        Ok(())
    }

    /// The first plot has the report's name alone.
    fn svg(&self, plot: &Plot) -> String {
        let first = self.plots.first().is_some_and(|first| std::ptr::eq(first, plot));
        if first { format!("{}.svg", self.name) } else { format!("{}-{}.svg", self.name, plot.name) }
    }

    fn markdown(&self, plan: &Plan) -> String {
        let machine = machine::describe();
        let text = |name: &str| machine[name].as_str().unwrap_or_default().to_owned();
        let mut page = format!("# {}\n\n{}\n\n", self.title, self.about.trim());
        let _ = writeln!(page, "* Command: `{}`", machine::command());
        let _ = writeln!(page, "* Date: {}", machine::today());
        let _ = writeln!(
            page,
            "* Machine: {} cores ({}), {}, Linux {}. All processes and links shared them. Load average before: {}",
            machine["cores"],
            text("processor"),
            text("memory"),
            text("kernel"),
            plan.load_average,
        );
        let _ = writeln!(
            page,
            "* Figures: median (least-most) of {}; what is compared was measured in turns",
            self.repeats()
        );
        for (what, why) in self.not_measured() {
            let _ = writeln!(page, "* {what}: {why}");
        }
        for plot in &self.plots {
            let _ = write!(page, "\n![{}]({})\n", plot.title, self.svg(plot));
        }
        if !self.shows.is_empty() {
            let _ = write!(page, "\n## What it shows\n\n{}", self.shows_table());
        }
        for table in &self.tables {
            let _ = write!(page, "\n{}", table.markdown());
        }
        page
    }

    /// The table of what is to be seen, also for the terminal.
    pub(crate) fn shows_table(&self) -> String {
        let value = |show: &Show| {
            let digits = if show.values.iter().all(|value| value.fract() == 0.0) { 0 } else { 3 };
            spread(show.values.iter().copied()).map_or("not measured".into(), |it| it.show(digits))
        };
        let rows: Vec<_> =
            self.shows.iter().map(|show| vec![show.what.clone(), value(show), show.bar.clone()]).collect();
        table(&["what, within a repeat", "median (least-most)", "wanted"], &rows)
    }

    fn rows(&self) -> impl Iterator<Item = &Row> {
        self.tables.iter().flat_map(|table| &table.rows)
    }

    fn repeats(&self) -> String {
        match self.rows().map(|row| row.repeats.len()).max() {
            None | Some(0) => "no repeat".into(),
            Some(1) => "one repeat".into(),
            Some(count) => format!("{count} repeats"),
        }
    }

    fn not_measured(&self) -> Vec<(String, String)> {
        let mut list: Vec<(String, String)> = Vec::new();
        for row in self.rows() {
            let name = row.key.join(", ");
            list.extend(row.skipped.iter().map(|why| (format!("Skipped ({name})"), why.clone())));
            list.extend(row.failures.iter().map(|why| (format!("Failed ({name})"), why.replace('\n', " "))));
        }
        list
    }

    fn json(&self, plan: &Plan) -> Value {
        let shows: Vec<Value> = self
            .shows
            .iter()
            .map(|show| json!({ "what": show.what, "wanted": show.bar, "repeats": show.values }))
            .collect();
        json!({
            "experiment": self.name,
            "command": machine::command(),
            "date": machine::today(),
            "machine": machine::describe(),
            "load_average_before": plan.load_average,
            "quick": plan.quick,
            "shows": shows,
            "tables": self.tables.iter().map(Table::json).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: [Metric; 2] = [Metric::new("rate", "writes/s", 0), Metric::new("lost", "lost", 0)];

    fn row(system: &str, rates: &[f64]) -> Row {
        let measured = |rate: &f64| Some(Measured { figures: BTreeMap::from([("rate", *rate)]), raw: json!(7) });
        Row { repeats: rates.iter().map(measured).collect(), ..Row::new([system]) }
    }

    fn report() -> Report {
        let rows =
            vec![row("one", &[10.0, 30.0, 20.0]), row("two", &[5.0, 10.0, 10.0]), Row::skipped(["three"], "no root")];
        let table = Table { title: "Rates".into(), keys: &["system"], metrics: &METRICS, rows };
        let rows = (table.row(&["one"]), table.row(&["two"]));
        let shows = vec![Show::ratio("one beside two", "1.5", rows, "rate")];
        Report { name: "test", title: "Test", about: "It.".into(), tables: vec![table], shows, plots: Vec::new() }
    }

    #[test]
    fn a_page_has_medians_with_their_spread_and_says_what_was_skipped() {
        let page = report().markdown(&Plan::default());
        assert!(page.contains("| one | 20 (10-30) |  |"), "{page}");
        assert!(page.contains("| three | skipped: no root |  |"), "{page}");
        assert!(page.contains("* Skipped (three): no root"), "{page}");
        assert!(page.contains("| one beside two | 2 (2-3) | 1.5 |"), "{page}");
        assert!(page.contains("of 3 repeats"), "{page}");
    }

    #[test]
    fn every_repeat_is_kept() {
        let data = report().json(&Plan::default());
        let repeats = &data["tables"][0]["rows"][0]["repeats"];
        assert_eq!(repeats[1], json!({ "figures": { "rate": 30.0 }, "raw": 7 }));
        assert_eq!(data["shows"][0]["repeats"], json!([2.0, 3.0, 2.0]));
    }

    #[test]
    fn a_repeat_that_failed_has_no_pair() {
        let mut one = row("one", &[10.0, 30.0]);
        one.repeats[0] = None;
        let other = row("two", &[5.0, 10.0]);
        assert_eq!(Show::ratio("", "", (Some(&one), Some(&other)), "rate").values, [3.0]);
        assert_eq!(Show::ratio("", "", (Some(&one), None), "rate").values, [0.0; 0]);
    }
}
