//! What one sees while a drill runs: a bar and a line about what is going on, on standard error.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// The screen; without a terminal it writes a plain line for each phase, or nothing.
pub(crate) struct Screen {
    bar: ProgressBar,
    plain: bool,
    mode: String,
}

impl Screen {
    /// For so many milliseconds of load.
    pub(crate) fn new(mode: &str, load: Duration, quiet: bool) -> Screen {
        let length = u64::try_from(load.as_millis()).unwrap_or(u64::MAX);
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(length) };
        let style = ProgressStyle::with_template("  {prefix:7.bold} {spinner} {bar:30.cyan/dim} {wide_msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(mode.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        let plain = bar.is_hidden() && !quiet;
        Screen { bar, plain, mode: mode.into() }
    }

    /// Something new begins.
    pub(crate) fn phase(&self, what: &str) {
        self.bar.set_message(what.to_owned());
        if self.plain {
            eprintln!("  {:7} {what}", self.mode);
        }
    }

    /// So far into the load, and how it stands.
    pub(crate) fn at(&self, load: Duration, how: String) {
        self.bar.set_position(u64::try_from(load.as_millis()).unwrap_or(u64::MAX));
        self.bar.set_message(how);
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
