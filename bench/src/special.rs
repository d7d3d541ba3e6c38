//! Questions that are no closed loop of one operation: memory, start-up, compaction.

use std::time::{Duration, Instant};

use starling_proto::etcdserverpb as pb;

use crate::Outcome;
use crate::client::Connection;
use crate::measure::{Figures, Window};
use crate::server::{Recipe, Server};
use crate::work::{self, Load, get_request};

/// After a start or a load, before memory is looked at.
const SETTLE: Duration = Duration::from_secs(3);

/// Memory and disk of a server that has rested for a moment, in MiB.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    /// Resident memory.
    pub rss_mib: f64,
    /// Blocks of the data directory.
    pub disk_mib: f64,
}

/// Waits a moment and looks.
pub fn footprint(server: &Server) -> Footprint {
    std::thread::sleep(SETTLE);
    Footprint { rss_mib: server.rss_mib(), disk_mib: server.disk_mib() }
}

/// Memory of an empty server.
pub fn idle_rss_mib(recipe: &Recipe) -> Outcome<f64> {
    // The data of a former run would count.
    let directory = recipe.directory.with_extension("idle");
    let server = Server::start(&Recipe { directory: directory.clone(), ..recipe.clone() })?;
    let rss_mib = footprint(&server).rss_mib;
    drop(server);
    std::fs::remove_dir_all(directory)?;
    Ok(rss_mib)
}

/// Puts while nothing else happens, and then while history is given up.
#[derive(Clone, Debug)]
pub struct UnderCompaction {
    /// Before the compaction.
    pub quiet: Figures,
    /// From the request to compact until the space is given up.
    pub compacting: Figures,
    /// How long that took.
    pub length: Duration,
}

/// A window of puts, then a window for as long as a compaction of all history takes.
pub fn under_compaction(server: &Server, load: &Load) -> Outcome<UnderCompaction> {
    let quiet = work::run(server, load)?.figures();
    let mut compaction = Ok(());
    let window: Window = work::run_until(server, load, || compaction = compact(server))?;
    compaction?;
    let length = window.length;
    Ok(UnderCompaction { quiet, compacting: window.figures(), length })
}

fn compact(server: &Server) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut kv = Connection::open(server.port()).await?.kv();
        let header = kv.range(get_request(0)).await?.into_inner().header;
        let revision = header.map_or(0, |header| header.revision);
        let begin = Instant::now();
        kv.compact(pb::CompactionRequest { revision, physical: true }).await?;
        eprintln!("    compacted in {:.2} s", begin.elapsed().as_secs_f64());
        Ok(())
    })
}
