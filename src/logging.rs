//! The log: one line an event, as JSON or for people.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::sync::Mutex;

use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::writer::{BoxMakeWriter, MakeWriterExt};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, LogLevel, LogOutput};

/// Starts to log. To be called once.
///
/// # Errors
///
/// If the log file cannot be opened.
pub fn init(level: LogLevel, format: LogFormat, outputs: &[LogOutput]) -> io::Result<()> {
    let is_terminal = outputs.iter().all(|output| match output {
        LogOutput::Stderr => io::stderr().is_terminal(),
        LogOutput::Stdout => io::stdout().is_terminal(),
        LogOutput::File(_) => false,
    });
    let mut writer = BoxMakeWriter::new(io::sink);
    for output in outputs {
        writer = BoxMakeWriter::new(writer.and(self::writer(output)?));
    }
    let for_people = match format {
        LogFormat::Console => true,
        LogFormat::Json => false,
        LogFormat::Auto => is_terminal,
    };
    let log = tracing_subscriber::fmt::layer().with_target(false).with_writer(writer);
    let registry = tracing_subscriber::registry().with(filter(level));
    if for_people {
        registry.with(log.with_ansi(is_terminal)).init();
    } else {
        registry.with(log.json().flatten_event(true)).init();
    }
    Ok(())
}

/// What the store and the transport say in passing is for those who look for a fault in them.
fn filter(level: LogLevel) -> Targets {
    let (level, of_libraries) = match level {
        LogLevel::Debug => (Level::DEBUG, Level::INFO),
        LogLevel::Info => (Level::INFO, Level::WARN),
        LogLevel::Warn => (Level::WARN, Level::WARN),
        LogLevel::Error => (Level::ERROR, Level::ERROR),
    };
    Targets::new().with_default(of_libraries).with_target(env!("CARGO_PKG_NAME"), level)
}

fn writer(output: &LogOutput) -> io::Result<BoxMakeWriter> {
    Ok(match output {
        LogOutput::Stderr => BoxMakeWriter::new(io::stderr),
        LogOutput::Stdout => BoxMakeWriter::new(io::stdout),
        LogOutput::File(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            BoxMakeWriter::new(Mutex::new(file))
        }
    })
}

/// From now on a panic in any thread is logged and ends the process: the threads that wait for that one would wait
/// for ever.
pub fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let backtrace = Backtrace::capture();
        tracing::error!(
            thread = thread.name().unwrap_or_default(),
            place,
            backtrace =
                (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string()),
            "panicked: {}",
            panic.payload_as_str().unwrap_or("for no given reason")
        );
        std::process::abort();
    }));
}
