//! What a page tells its readers to type: commands in fenced blocks and in tables, chapter by chapter.

use std::fmt;

/// Columns of a table of commands.
const COMMAND: &str = "command";
/// A line of a block that a shell is to go on reading.
const GOES_ON: char = '\\';

/// A command, and what comes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) chapter: String,
    /// The first cell of its row, if it is in a table.
    pub(super) ids: String,
    pub(super) command: String,
    pub(super) shows: Shows,
}

/// What a reader is to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shows {
    /// Nothing is said of it; it works.
    Success,
    /// These lines.
    Lines(Vec<String>),
    /// All of this, somewhere.
    Parts(Vec<String>),
}

/// A page.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) steps: Vec<Step>,
    /// Code in the middle of sentences.
    pub(super) mentions: Vec<String>,
    /// Of each chapter, in order.
    pub(super) chapters: Vec<String>,
}

/// Where a line stands.
enum Place {
    Text,
    /// A table; whether it is one of commands.
    Table(bool),
    /// A fenced block, and whether it is shown as a terminal.
    Block(Language),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Language {
    /// With a prompt, and what is printed.
    Console,
    /// A command in each line.
    Script,
    /// A drawing.
    Other,
}

/// Something that cannot be read.
#[derive(Debug)]
pub(super) struct Unknown(String);

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a block of an unknown language: {}", self.0)
    }
}

impl Page {
    pub(super) fn read(text: &str) -> Result<Self, Unknown> {
        let mut page = Self { steps: Vec::new(), mentions: Vec::new(), chapters: Vec::new() };
        let (mut place, mut goes_on) = (Place::Text, false);
        for line in text.lines() {
            if let Place::Block(language) = place {
                if line == "```" {
                    place = Place::Text;
                } else {
                    goes_on = page.block_line(language, line, goes_on);
                }
            } else if let Some(language) = line.strip_prefix("```") {
                place = Place::Block(match language {
                    "console" => Language::Console,
                    "sh" => Language::Script,
                    "text" => Language::Other,
                    other => return Err(Unknown(other.to_owned())),
                });
            } else if let Some(heading) = line.strip_prefix("## ") {
                page.chapters.push(heading.to_owned());
            } else if let Some(row) = line.strip_prefix('|') {
                let cells = cells(row);
                let is_of_commands = match place {
                    Place::Table(is_of_commands) => is_of_commands,
                    _ => cells.iter().any(|cell| cell == COMMAND),
                };
                place = Place::Table(is_of_commands);
                page.row(is_of_commands, &cells);
            } else {
                place = Place::Text;
                page.mentions.extend(code(line));
            }
        }
        Ok(page)
    }

    fn push(&mut self, ids: &str, command: String, shows: Shows) {
        let chapter = self.chapters.last().cloned().unwrap_or_default();
        self.steps.push(Step { chapter, ids: ids.to_owned(), command, shows });
    }

    /// Whether the next line belongs to the same command.
    fn block_line(&mut self, language: Language, line: &str, goes_on: bool) -> bool {
        let command = match language {
            Language::Other => return false,
            Language::Script if line.starts_with('#') || line.is_empty() => return false,
            Language::Script => Some((line, Shows::Success)),
            Language::Console if goes_on => Some((line, Shows::Success)),
            Language::Console => {
                line.strip_prefix("$ ").map(|command| (command, Shows::Lines(Vec::new())))
            }
        };
        let Some((command, shows)) = command else {
            let last = self.steps.last_mut().map(|step| &mut step.shows);
            if let Some(Shows::Lines(lines)) = last {
                lines.push(line.to_owned());
            }
            return false;
        };
        let next = command.ends_with(GOES_ON);
        let command = command.trim_end_matches(GOES_ON);
        match self.steps.last_mut() {
            Some(step) if goes_on => step.command.push_str(command.trim_start()),
            _ => self.push("", command.to_owned(), shows),
        }
        next
    }

    /// The code in the cell next to the last one is a command, that in the last one is seen then.
    fn row(&mut self, is_of_commands: bool, cells: &[String]) {
        if !is_of_commands {
            return self.mentions.extend(cells.iter().flat_map(|cell| code(cell)));
        }
        let [ids, .., commands, seen] = cells else { return };
        let parts: Vec<_> = code(seen).collect();
        for command in code(commands) {
            let shows = if parts.is_empty() { Shows::Success } else { Shows::Parts(parts.clone()) };
            self.push(ids, command, shows);
        }
    }
}

/// The cells of a row. A bar in one is written `\|`.
fn cells(row: &str) -> Vec<String> {
    let row = row.trim_end().trim_end_matches('|').replace("\\|", "\0");
    row.split('|').map(|cell| cell.trim().replace('\0', "|")).collect()
}

/// What is between single or double backticks.
fn code(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split('`').skip(1).step_by(2).map(str::to_owned)
}

#[test]
fn commands_are_found_wherever_they_stand() {
    let text = "# A\nsay `x y`\n## B\n```sh\n# not this\none \\\n    two\n```\n```console\n$ three\n3\n...\n$ four\n```\n\
        | row | command | shows |\n|---|---|---|\n| G1, G2 | `five \\| six` | `5` and `6` |\n| G3 | `seven` | |\n\n| a |\n| `b c` |\n```text\n$ no\n```\n";
    let page = Page::read(text).expect("it can be read");
    let step = |ids: &str, command: &str, shows: Shows| Step {
        chapter: "B".to_owned(),
        ids: ids.to_owned(),
        command: command.to_owned(),
        shows,
    };
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let expected = [
        step("", "one two", Shows::Success),
        step("", "three", Shows::Lines(words(&["3", "..."]))),
        step("", "four", Shows::Lines(vec![])),
        step("G1, G2", "five | six", Shows::Parts(words(&["5", "6"]))),
        step("G3", "seven", Shows::Success),
    ];
    assert_eq!(page.steps, expected);
    assert_eq!(page.mentions, ["x y", "b c"]);
    assert!(Page::read("```ruby\n```\n").is_err(), "nobody knows whether that is run");
}
