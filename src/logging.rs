//! The log: one line an event, as JSON or for people.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::sync::Mutex;

use tracing::Level;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::config::{LogFormat, LogLevel, LogOutput};

/// Starts to log. To be called once.
///
/// # Errors
///
/// If the log file cannot be opened.
pub fn init(level: LogLevel, format: LogFormat, output: &LogOutput) -> io::Result<()> {
    let level = match level {
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Info => Level::INFO,
        LogLevel::Warn => Level::WARN,
        LogLevel::Error => Level::ERROR,
    };
    let (writer, is_terminal) = match output {
        LogOutput::Stderr => (BoxMakeWriter::new(io::stderr), io::stderr().is_terminal()),
        LogOutput::Stdout => (BoxMakeWriter::new(io::stdout), io::stdout().is_terminal()),
        LogOutput::File(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            (BoxMakeWriter::new(Mutex::new(file)), false)
        }
    };
    let for_people = match format {
        LogFormat::Console => true,
        LogFormat::Json => false,
        LogFormat::Auto => is_terminal,
    };
    let log =
        tracing_subscriber::fmt().with_max_level(level).with_target(false).with_writer(writer);
    if for_people {
        log.with_ansi(is_terminal).init();
    } else {
        log.json().flatten_event(true).init();
    }
    Ok(())
}
