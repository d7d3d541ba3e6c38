//! `starling cluster block` and `unblock`: which members one does not talk to.

use starling_proto::starling::admin::v1 as pb;

use super::flags::{self, Flag};
use super::{Output, ToolError, member};

const FLAGS: &[Flag] =
    &[member::ENDPOINT, member::CA_CERT, member::CERT, member::KEY, member::USER];

fn help() -> String {
    format!(
        "\
Whom does a member not talk to? It takes nothing from them, sends them nothing, and does not let them join, until it stops. A
link is cut as soon as one side has blocked the other: to cut c off from a and b, tell c to block both.

Usage:
  starling cluster block [NAME ...] [flags]      blocks them; without a name, shows who is blocked
  starling cluster unblock [NAME ...] [flags]    talks to them again; without a name, to all

{}",
        flags::list(FLAGS)
    )
}

/// Runs `starling cluster block`.
pub(super) fn block(args: &[String], output: &mut Output<'_>) -> Result<(), ToolError> {
    change(args, output, |add| pb::BlockRequest { add, ..pb::BlockRequest::default() })
}

/// Runs `starling cluster unblock`.
pub(super) fn unblock(args: &[String], output: &mut Output<'_>) -> Result<(), ToolError> {
    change(args, output, |remove| pb::BlockRequest {
        clear: remove.is_empty(),
        remove,
        ..pb::BlockRequest::default()
    })
}

fn change(
    args: &[String],
    output: &mut Output<'_>,
    request: impl FnOnce(Vec<String>) -> pb::BlockRequest,
) -> Result<(), ToolError> {
    // Names first, as in the usage.
    let flags_at = args.iter().position(|arg| arg.starts_with('-')).unwrap_or(args.len());
    let (names, rest) = args.split_at(flags_at);
    let Some(values) = flags::parse(FLAGS, rest)? else {
        return super::show(output.to, &help());
    };
    let reply = super::endpoint(&values)?.block(request(names.to_vec()))?;
    super::show(output.to, &render(&reply.names))
}

fn render(names: &[String]) -> String {
    match names {
        [] => "talks to everybody\n".to_owned(),
        names => format!("does not talk to {}\n", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_the_list() {
        assert_eq!(render(&[]), "talks to everybody\n");
        assert_eq!(render(&["a".to_owned(), "b".to_owned()]), "does not talk to a, b\n");
    }
}
