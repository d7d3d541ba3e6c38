//! `starling shell`: a member at one's fingertips, or in a script.
//!
//! At a terminal there are a prompt, a history and completion. From a pipe each line is a command, without a prompt; what fails is
//! told on the standard error, the rest goes on, and the exit code is 1.

mod commands;
mod editor;
mod session;
mod words;

use std::io::{BufRead, Read, Write};
use std::path::PathBuf;

use super::flags::{self, Flag, flag};
use super::member;
use super::{Output, ToolError};
use commands::Shell;
use editor::{Editor, Typed};
use session::Session;

/// The longest line of a script: a value may be as large as a request.
const LINE_BYTES_MAX: u64 = 8 << 20;

const FLAGS: &[Flag] = &[
    member::ENDPOINT,
    member::CA_CERT,
    member::CERT,
    member::KEY,
    member::USER,
    flag(
        "write-ack",
        "all",
        "who has a write before it is answered: local, one, majority or all that are alive; member for what the member is set to",
    ),
    flag("c", "", "commands to run, one a line, instead of reading any"),
];

/// What a shell reads from, and where it tells of what fails.
pub struct Input<'a> {
    /// The standard input.
    pub from: &'a mut dyn BufRead,
    /// Whether that is a terminal.
    pub is_terminal: bool,
    /// The standard error.
    pub errors: &'a mut dyn Write,
    /// Where the history of lines is kept.
    pub home: Option<PathBuf>,
}

fn help() -> String {
    format!(
        "\
A shell for one member: commands at a prompt, from a pipe, from -c, or one behind the flags.

Usage:
  starling shell [flags]
  starling shell [flags] <command> [arguments]
  echo 'put a b' | starling shell [flags]

Words with blanks stand in quotes; \\n, \\t and \\xHH are escapes outside of single ones. In scripts lines that begin with # are
passed over. The exit code is 1 if any command has failed.

Commands:
{}
{}",
        commands::list(),
        flags::list(FLAGS)
    )
}

/// Runs the command.
pub(super) fn run(
    args: &[String],
    output: &mut Output<'_>,
    input: &mut Input<'_>,
) -> Result<(), ToolError> {
    let Some((values, command)) = flags::parse_first(FLAGS, args)? else {
        return super::show(output.to, &help());
    };
    let ack = commands::acknowledgement(values.text("write-ack")).map_err(ToolError::Usage)?;
    let lines = values.text("c");
    if !lines.is_empty() && !command.is_empty() {
        return Err(ToolError::Usage("either -c or a command".to_owned()));
    }
    let session = Session::new(super::endpoint(&values)?);
    let (colours, is_terminal) = (output.colours(), output.is_terminal);
    let (session, out) = (&session, &mut *output.to);
    let mut shell = Shell { session, out, is_terminal, colours, ack, is_over: false };
    if !command.is_empty() {
        // Whoever has split them has taken the quotes off.
        let words: Vec<_> = command.iter().map(|word| word.as_bytes().to_vec()).collect();
        return shell.run(&words).map_err(ToolError::Failed);
    }
    if !lines.is_empty() {
        return script(&mut shell, &mut lines.as_bytes(), input.errors);
    }
    if input.is_terminal && is_terminal {
        return converse(shell, session, input);
    }
    script(&mut shell, input.from, input.errors)
}

/// Runs each line.
fn script(
    shell: &mut Shell<'_>,
    from: &mut dyn BufRead,
    errors: &mut dyn Write,
) -> Result<(), ToolError> {
    let (mut line, mut has_failed) = (Vec::new(), false);
    while !shell.is_over {
        line.clear();
        let read = (&mut *from).take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
        let read = read.map_err(|error| ToolError::Failed(format!("cannot read: {error}")))?;
        if read == 0 {
            break;
        }
        if read as u64 == LINE_BYTES_MAX && !line.ends_with(b"\n") {
            let why = format!("a line is longer than {LINE_BYTES_MAX} bytes");
            return Err(ToolError::Failed(why));
        }
        if line.trim_ascii_start().starts_with(b"#") {
            continue;
        }
        if let Err(why) = words::split(&line).and_then(|words| shell.run(&words)) {
            has_failed = true;
            let _ = writeln!(errors, "{}", why.trim_end());
        }
    }
    if has_failed { Err(ToolError::Told) } else { Ok(()) }
}

/// Talks to somebody at a terminal. What has failed there has been seen.
fn converse(
    mut shell: Shell<'_>,
    session: &Session,
    input: &mut Input<'_>,
) -> Result<(), ToolError> {
    let mut editor = Editor::new(session, input.home.clone()).map_err(ToolError::Failed)?;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let prompt = format!("{}: ", words::shown(host.as_bytes()));
    while !shell.is_over {
        let line = match editor.read(&prompt).map_err(ToolError::Failed)? {
            Typed::Line(line) => line,
            Typed::Nothing => continue,
            Typed::End => break,
        };
        if let Err(why) = words::split(line.as_bytes()).and_then(|words| shell.run(&words)) {
            let _ = writeln!(input.errors, "{}", why.trim_end());
        }
    }
    editor.save();
    super::show(shell.out, "bye\n")
}
