//! The commands of the program that are no member: what they have in common, and those that ask a running one. And whom a member
//! asks before it is one: [`registry`].

mod block;
mod conflicts;
pub mod figures;
pub mod flags;
mod health;
mod import;
mod member;
mod mirror;
pub mod registry;
mod shell;
mod status;
mod table;

use std::io::{self, Write};
use std::time::Duration;

use flags::Values;
pub use shell::Input;

/// How often `--watch` looks.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// To the upper left corner.
const HOME: &str = "\x1b[H";
/// Takes back what a terminal shows from here to the end of the line, and to the end of the screen.
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";
const CLEAR_ALL: &str = "\x1b[2J";

/// Why nothing, or not everything, was done.
#[derive(Debug, PartialEq, Eq)]
pub enum ToolError {
    /// This is no command line.
    Usage(String),
    /// A file cannot be written, or a member does not answer.
    Failed(String),
    /// The same, but it has been told already.
    Told,
}

/// Where results go.
pub struct Output<'a> {
    /// The standard output.
    pub to: &'a mut dyn Write,
    /// Whether that is a terminal.
    pub is_terminal: bool,
    /// Whether it is to have colours, if so.
    pub has_colours: bool,
}

impl Output<'_> {
    fn colours(&self) -> bool {
        self.is_terminal && self.has_colours
    }
}

/// Runs `starling cluster`, which asks a member how its cluster is, or has it block others.
pub fn cluster(args: &[String], output: &mut Output<'_>) -> Result<(), ToolError> {
    match args.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        Some(("status", rest)) => status::run(rest, output),
        Some(("block", rest)) => block::block(rest, output),
        Some(("unblock", rest)) => block::unblock(rest, output),
        Some(("-h" | "-help" | "--help", _)) => show(output.to, &status::help()),
        Some((word, _)) => Err(ToolError::Usage(format!("{word:?} is not a command of cluster"))),
        None => {
            Err(ToolError::Usage("cluster needs a command: status, block or unblock".to_owned()))
        }
    }
}

/// Runs `starling conflicts`, which asks a member for writes that were lost.
pub fn conflicts(args: &[String], output: &mut Output<'_>) -> Result<(), ToolError> {
    conflicts::run(args, output)
}

/// Runs `starling import`, which makes a store from a file of etcd's.
pub fn import(args: &[String], output: &mut Output<'_>) -> Result<(), ToolError> {
    import::import(args, output)
}

/// Runs `starling snapshot`, which makes a store from a snapshot.
pub fn snapshot(args: &[String], output: &mut Output<'_>) -> Result<(), ToolError> {
    import::snapshot(args, output)
}

/// Runs `starling mirror`, which keeps keys of another cluster.
pub fn mirror(args: &[String], output: &mut Output<'_>) -> Result<(), ToolError> {
    mirror::run(args, output)
}

/// Runs `starling health`, which asks a member whether it is well.
pub fn health(args: &[String], output: &mut Output<'_>) -> Result<(), ToolError> {
    health::run(args, output)
}

/// Runs `starling shell`, which does what somebody says to a member.
pub fn shell(
    args: &[String],
    output: &mut Output<'_>,
    input: &mut Input<'_>,
) -> Result<(), ToolError> {
    shell::run(args, output, input)
}

/// Writes to the standard output. Whoever reads it may stop early.
pub fn show(out: &mut dyn Write, text: &str) -> Result<(), ToolError> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(ToolError::Failed(format!("cannot write: {error}")))
        }
        _ => Ok(()),
    }
}

/// Shows something anew every second, for ever: in the same place on a terminal. What fails is shown, too: a member that is
/// looked at may well be restarted meanwhile.
fn watch(
    out: &mut dyn Write,
    is_in_place: bool,
    mut look: impl FnMut() -> Result<String, ToolError>,
) -> Result<(), ToolError> {
    let mut is_first = true;
    loop {
        let text = match look() {
            Ok(text) => text,
            Err(ToolError::Failed(text)) => format!("\n  {text}\n"),
            Err(usage) => return Err(usage),
        };
        let text = if is_in_place { in_place(&text, is_first) } else { text };
        // Unlike a table that is shown once, this ends when nobody reads it any more.
        let shown = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        shown.map_err(|error| ToolError::Failed(format!("cannot write: {error}")))?;
        is_first = false;
        std::thread::sleep(WATCH_INTERVAL);
    }
}

/// Writes over what was there before, without a moment of darkness.
fn in_place(text: &str, is_first: bool) -> String {
    let clear = if is_first { CLEAR_ALL } else { "" };
    let lines = text.replace('\n', &format!("{CLEAR_LINE}\n"));
    format!("{clear}{HOME}{lines}{CLEAR_BELOW}")
}

fn endpoint(values: &Values) -> Result<member::Member, ToolError> {
    let (ca, cert, key) = (values.path("cacert"), values.path("cert"), values.path("key"));
    let files = member::TlsFiles { ca, cert, key };
    member::Member::at(values.text("endpoint"), &files)?.with_user(values.text("user"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(args: &[&str]) -> ToolError {
        let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut output = Output { to: &mut Vec::new(), is_terminal: false, has_colours: false };
        cluster(&args, &mut output).expect_err("it is refused")
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let usage = |text: &str| ToolError::Usage(text.to_owned());
        assert_eq!(refusal(&[]), usage("cluster needs a command: status, block or unblock"));
        assert_eq!(refusal(&["state"]), usage("\"state\" is not a command of cluster"));
        assert_eq!(refusal(&["status", "now"]), usage("\"now\" is not a valid flag"));
        let secret =
            refusal(&["status", "--endpoint", "https://127.0.0.1:2379", "--cert", "a.pem"]);
        assert_eq!(secret, usage("--cert and --key are needed both"));
    }

    #[test]
    fn a_screen_is_written_over() {
        assert_eq!(in_place("a\nb\n", true), "\x1b[2J\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
        assert_eq!(in_place("a\n", false), "\x1b[Ha\x1b[K\n\x1b[J");
    }
}
