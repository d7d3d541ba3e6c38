//! The line that a user types: its history, and what the tab key makes of it.

use std::path::PathBuf;

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{CompletionType, Config, Context, Editor as LineEditor, Helper};

use super::commands::{self, COMMANDS, Takes};
use super::session::Session;
use super::words::{quoted, split};

/// Lines that are remembered.
const HISTORY_LINES_MAX: usize = 1000;
/// In the user's home directory.
const HISTORY: &str = ".starling_history";

/// What a user has done with the line.
pub(super) enum Typed {
    Line(String),
    /// Ctrl-C: the line does not count.
    Nothing,
    /// Ctrl-D.
    End,
}

/// The line editor.
pub(super) struct Editor<'a> {
    lines: LineEditor<Completion<'a>, DefaultHistory>,
    /// Where the history is; `None` for somebody without a home.
    history: Option<PathBuf>,
}

impl<'a> Editor<'a> {
    pub(super) fn new(session: &'a Session, home: Option<PathBuf>) -> Result<Self, String> {
        let cannot = |error| format!("cannot edit lines: {error}");
        let config = Config::builder()
            .completion_type(CompletionType::List)
            .max_history_size(HISTORY_LINES_MAX)
            .map_err(cannot)?
            .history_ignore_space(true)
            .build();
        let mut lines = LineEditor::with_config(config).map_err(cannot)?;
        lines.set_helper(Some(Completion { session }));
        let history = home.map(|home| home.join(HISTORY));
        if let Some(history) = &history {
            // There is none before the first time.
            let _ = lines.load_history(history);
        }
        Ok(Self { lines, history })
    }

    pub(super) fn read(&mut self, prompt: &str) -> Result<Typed, String> {
        match self.lines.readline(prompt) {
            Ok(line) => {
                // A history that cannot be kept is missed by nobody.
                let _ = self.lines.add_history_entry(&line);
                Ok(Typed::Line(line))
            }
            Err(ReadlineError::Interrupted) => Ok(Typed::Nothing),
            Err(ReadlineError::Eof) => Ok(Typed::End),
            Err(error) => Err(format!("cannot read: {error}")),
        }
    }

    pub(super) fn save(&mut self) {
        if let Some(history) = &self.history {
            let _ = self.lines.save_history(history);
        }
    }
}

/// What the tab key offers: commands, then what they take.
struct Completion<'a> {
    session: &'a Session,
}

/// What is being typed: the words before it, where it starts, and how it begins.
fn typed(line: &str) -> Option<(Vec<Vec<u8>>, usize, Vec<u8>)> {
    let at = line.rfind(char::is_whitespace).map_or(0, |at| at + 1);
    // Within quotes that is no start of a word, and then there is nothing to offer.
    let before = split(line.get(..at)?.as_bytes()).ok()?;
    let word = split(line.get(at..)?.as_bytes()).ok()?.pop().unwrap_or_default();
    Some((before, at, word))
}

fn commands_that_begin(word: &[u8]) -> Vec<String> {
    let names = COMMANDS.iter().map(|command| command.name);
    names.filter(|name| name.as_bytes().starts_with(word)).map(|name| format!("{name} ")).collect()
}

impl Completion<'_> {
    fn offers(&self, before: &[Vec<u8>], word: &[u8]) -> Vec<String> {
        let Some((first, rest)) = before.split_first() else { return commands_that_begin(word) };
        let takes = COMMANDS.iter().find(|it| it.name.as_bytes() == first).map(|it| it.takes);
        if rest.iter().any(|word| !word.starts_with(b"-")) {
            return Vec::new();
        }
        match takes {
            Some(Takes::Commands) => commands_that_begin(word),
            Some(Takes::Keys) => {
                let keys = commands::keys(self.session, word).unwrap_or_default();
                keys.iter().map(|key| quoted(key)).collect()
            }
            Some(Takes::Members) => {
                let members = self.session.status().map(|status| status.members);
                let names = members.unwrap_or_default().into_iter().map(|member| member.name);
                let names = names.filter(|name| name.as_bytes().starts_with(word));
                names.map(|name| quoted(name.as_bytes())).collect()
            }
            Some(Takes::Nothing) | None => Vec::new(),
        }
    }
}

impl Completer for Completion<'_> {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let Some((before, at, word)) = line.get(..position).and_then(typed) else {
            return Ok((position, Vec::new()));
        };
        Ok((at, self.offers(&before, &word)))
    }
}

impl Hinter for Completion<'_> {
    type Hint = String;
}

impl Highlighter for Completion<'_> {}
impl Validator for Completion<'_> {}
impl Helper for Completion<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_is_completed() {
        let put = || vec![b"put".to_vec()];
        assert_eq!(typed("pu"), Some((vec![], 0, b"pu".to_vec())));
        assert_eq!(typed("put "), Some((put(), 4, vec![])));
        assert_eq!(typed("put k\\x31"), Some((put(), 4, b"k1".to_vec())));
        assert_eq!(typed("put 'a "), None);
        assert_eq!(commands_that_begin(b"me"), ["members "]);
        assert_eq!(commands_that_begin(b"s"), ["show ", "sync ", "status ", "snapshot "]);
    }
}
