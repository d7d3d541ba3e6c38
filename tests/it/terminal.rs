//! `starling shell` as somebody at a terminal has it: a prompt, lines that can be called back, and what the tab key makes of them.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::process::Process;

/// How long it may take until something is shown.
const PATIENCE: Duration = Duration::from_secs(30);

const ENTER: &str = "\r";
const TAB: &str = "\t";
const UP: &str = "\x1b[A";
const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";

/// What was shown, and whether more can come.
#[derive(Default)]
struct Screen {
    text: Mutex<(String, bool)>,
    changed: Condvar,
}

/// A shell, and whoever sits at it.
struct Terminal {
    shell: Child,
    keyboard: File,
    screen: Arc<Screen>,
    /// What has been read already.
    seen: usize,
}

impl Terminal {
    fn open(port: u16, home: &Path) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap().into_string().unwrap();
        let tty = || Stdio::from(File::options().read(true).write(true).open(&name).unwrap());
        let mut shell = Command::new(env!("CARGO_BIN_EXE_starling"));
        shell.arg("shell").arg(format!("--endpoint=127.0.0.1:{port}")).env_clear();
        shell.env("HOME", home).env("TERM", "xterm");
        let shell = shell.stdin(tty()).stdout(tty()).stderr(tty()).spawn().unwrap();
        let keyboard = File::from(controller);
        let screen = Arc::new(Screen::default());
        let (mut output, shown) = (keyboard.try_clone().unwrap(), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // It ends by an error when nobody has the terminal any more.
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                shown.text.lock().unwrap().0.push_str(&String::from_utf8_lossy(&bytes[..count]));
                shown.changed.notify_all();
            }
            shown.text.lock().unwrap().1 = true;
            shown.changed.notify_all();
        });
        Self { shell, keyboard, screen, seen: 0 }
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until this is shown, behind what was waited for before.
    fn sees(&mut self, words: &str) {
        let begin = self.seen;
        let is_missing =
            |(text, is_over): &mut (String, bool)| !*is_over && !text[begin..].contains(words);
        let text = self.screen.text.lock().unwrap();
        let (text, _) = self.screen.changed.wait_timeout_while(text, PATIENCE, is_missing).unwrap();
        let at = text.0[begin..].find(words);
        let at = at.unwrap_or_else(|| panic!("no {words:?} in {:?}", &text.0[begin..]));
        self.seen = begin + at + words.len();
    }

    /// The exit code, after what was said at the end.
    fn ends(mut self, words: &str) -> Option<i32> {
        self.sees(words);
        self.shell.wait().unwrap().code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

#[test]
fn a_prompt_with_history_and_completion() {
    let (data, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let member = Process::start(data.path(), &[]);
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let prompt = format!("{host}: ");
    let mut terminal = Terminal::open(member.port, home.path());
    terminal.sees(&prompt);
    for key in ["pine", "larch", "oak tree"] {
        terminal.press(&format!("put '{key}' {}{ENTER}", key.len()));
        terminal.sees("OK");
        terminal.sees(&prompt);
    }

    // A command, and a key of which there is one.
    terminal.press(&format!("ge{TAB}"));
    terminal.sees("get ");
    terminal.press(&format!("oa{TAB}"));
    terminal.sees("get \"oak tree\"");
    terminal.press(ENTER);
    terminal.sees("oak tree : 8");
    terminal.sees(&prompt);

    terminal.press(UP);
    terminal.sees("get \"oak tree\"");
    terminal.press(&format!("{UP}{UP}"));
    terminal.sees("put 'larch' 5");
    // It does not count.
    terminal.press(CTRL_C);
    terminal.sees(&prompt);
    terminal.press(&format!("get pine{ENTER}"));
    terminal.sees("pine : 4");
    terminal.sees(&prompt);

    // What has failed is told, and nothing else comes of it.
    terminal.press(&format!("get missing{ENTER}"));
    terminal.sees("get: missing not found");
    terminal.sees(&prompt);
    terminal.press(CTRL_D);
    assert_eq!(terminal.ends("bye"), Some(0));

    // The next one remembers.
    let mut terminal = Terminal::open(member.port, home.path());
    terminal.sees(&prompt);
    terminal.press(&format!("{UP}{UP}"));
    terminal.sees("get pine");
    terminal.press(ENTER);
    terminal.sees("pine : 4");
    terminal.sees(&prompt);
    terminal.press(&format!("exit{ENTER}"));
    assert_eq!(terminal.ends("bye"), Some(0));
}
