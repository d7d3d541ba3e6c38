//! Members that this one does not talk to, by name: it takes nothing from them, sends them nothing, and does not let them join.
//!
//! Each side of a link can block it, and it is cut for both then. What is written on either side gets around by way of others that
//! both talk to, if there are any. That is for operators: to keep a member away that misbehaves, and to rehearse a cut without
//! touching the network.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

/// Names on the list. A cluster of thousands is cut in two by blocks on the smaller side.
pub const BLOCKED_MAX: usize = 1000;

/// How the list is to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockChange {
    /// Names that are put on the list.
    pub add: Vec<String>,
    /// Names that are taken off it.
    pub remove: Vec<String>,
    /// Whether all that were on it are taken off first.
    pub clear: bool,
}

/// Why the list stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockRefused {
    /// A member cannot block itself.
    Itself,
    /// There would be more than [`BLOCKED_MAX`].
    TooMany,
}

impl fmt::Display for BlockRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Itself => f.write_str("a member cannot block itself"),
            Self::TooMany => write!(f, "more than {BLOCKED_MAX} names"),
        }
    }
}

/// The list. It is not kept on disk: after a start it is what `--peer-block` says.
#[derive(Debug, Default)]
pub(super) struct Blocked {
    names: RwLock<BTreeSet<String>>,
    /// Whether there are any: asked for each message.
    any: AtomicBool,
}

impl Blocked {
    /// Changes the list of the member called `me`, and returns it.
    pub(super) fn change(
        &self,
        me: &str,
        change: BlockChange,
    ) -> Result<BTreeSet<String>, BlockRefused> {
        if change.add.iter().any(|name| name == me) {
            return Err(BlockRefused::Itself);
        }
        let mut names = self.names.write();
        let mut changed = if change.clear { BTreeSet::new() } else { names.clone() };
        changed.retain(|name| !change.remove.contains(name));
        changed.extend(change.add);
        if changed.len() > BLOCKED_MAX {
            return Err(BlockRefused::TooMany);
        }
        self.any.store(!changed.is_empty(), Ordering::Release);
        names.clone_from(&changed);
        Ok(changed)
    }

    /// Whether a member of some name is blocked. Without a list, the name is not asked for.
    pub(super) fn has<'a>(&self, name: impl FnOnce() -> Option<&'a str>) -> bool {
        self.any.load(Ordering::Acquire)
            && name().is_some_and(|name| self.names.read().contains(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_named_is_blocked() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let add = |list: &[&str]| BlockChange { add: names(list), ..BlockChange::default() };
        let blocked = Blocked::default();
        assert!(!blocked.has(|| panic!("nobody is blocked, whatever the name")));
        blocked.change("me", add(&["a", "b"])).unwrap();
        assert!(blocked.has(|| Some("a")));
        assert!(!blocked.has(|| Some("ab")) && !blocked.has(|| None));
        let rest = BlockChange { remove: names(&["a"]), ..BlockChange::default() };
        assert_eq!(blocked.change("me", rest), Ok(BTreeSet::from(["b".to_owned()])));
        assert!(!blocked.has(|| Some("a")) && blocked.has(|| Some("b")));
        let anew = BlockChange { clear: true, ..add(&["c"]) };
        assert_eq!(blocked.change("me", anew), Ok(BTreeSet::from(["c".to_owned()])));
    }

    #[test]
    fn what_is_refused_changes_nothing() {
        let blocked = Blocked::default();
        let names =
            |range: std::ops::Range<usize>| range.map(|n| n.to_string()).collect::<Vec<_>>();
        let add = |add| BlockChange { add, ..BlockChange::default() };
        assert_eq!(blocked.change("7", add(names(0..9))), Err(BlockRefused::Itself));
        assert!(!blocked.has(|| Some("1")));
        assert_eq!(blocked.change("me", add(names(0..BLOCKED_MAX))).unwrap().len(), BLOCKED_MAX);
        let one_more = add(names(BLOCKED_MAX..BLOCKED_MAX + 1));
        assert_eq!(blocked.change("me", one_more), Err(BlockRefused::TooMany));
        assert!(blocked.has(|| Some("1")) && !blocked.has(|| Some("1000")));
    }
}
