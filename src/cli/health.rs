//! `starling health`: whether a member is well, as an exit code, for whoever starts containers.

use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use tonic::body::Body;
use tower::ServiceExt;

use super::flags::{self, Flag, flag, switch};
use super::member;
use super::{Output, ToolError};

/// Answers are a line or two.
const BODY_BYTES_MAX: usize = 64 * 1024;
const SECONDS_MAX: u64 = 3600;

const FLAGS: &[Flag] = &[
    member::ENDPOINT,
    member::CA_CERT,
    member::CERT,
    member::KEY,
    flag("timeout", "5", "how long the member may take to answer, in seconds"),
    switch("ready", "whether it takes requests now (/readyz)"),
    switch("live", "whether it has to be started anew (/livez)"),
    switch("quiet", "no word, but for the exit code"),
];

fn help() -> String {
    format!(
        "\
Is a member well? The exit code is 0 if it is, and 1 if not or if nobody answers. Without --ready or --live it is asked what etcd
answers at /health: whether it can be read, and whether there is an alarm.

Usage:
  starling health [flags]

{}",
        flags::list(FLAGS)
    )
}

/// Runs the command.
pub(super) fn run(args: &[String], output: &mut Output<'_>) -> Result<(), ToolError> {
    let Some(values) = flags::parse(FLAGS, args)? else {
        return super::show(output.to, &help());
    };
    let path = match (values.is_set("ready"), values.is_set("live")) {
        (true, true) => return Err(ToolError::Usage("either --ready or --live".to_owned())),
        (true, false) => "/readyz",
        (false, true) => "/livez",
        (false, false) => "/health",
    };
    let patience = Duration::from_secs(values.whole("timeout", (1, SECONDS_MAX))?);
    let is_quiet = values.is_set("quiet");
    let member = super::endpoint(&values)?.with_timeout(patience);
    match ask(&member, path, patience) {
        Ok(text) if is_quiet => drop(text),
        Ok(text) => super::show(output.to, &format!("{}\n", text.trim_end()))?,
        Err(_) if is_quiet => return Err(ToolError::Told),
        Err(why) => {
            let address = member.address();
            return Err(ToolError::Failed(format!("{address}: {}", why.trim_end())));
        }
    }
    Ok(())
}

/// What the member answers on a path, if that is that all is well.
fn ask(member: &member::Member, path: &str, patience: Duration) -> Result<String, String> {
    let work = async {
        let channel = member.channel().await?;
        let request = Request::get(path).body(Body::empty()).map_err(|error| error.to_string())?;
        let answer = channel.oneshot(request).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let body = http_body_util::Limited::new(answer.into_body(), BODY_BYTES_MAX);
        let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        if status.is_success() { Ok(text) } else { Err(text) }
    };
    let late = |_| Err("no answer in time".to_owned());
    member.block_on(async { tokio::time::timeout(patience, work).await.unwrap_or_else(late) })
}
