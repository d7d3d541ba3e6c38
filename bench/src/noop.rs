//! A service with etcd's messages that does nothing: what gRPC itself costs on this machine.
//!
//! It serves as Starling does: a current-thread runtime per core, and connections dealt to them in turn.

use std::net::SocketAddr;
use std::thread;

use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::kv_server::{Kv, KvServer};
use starling_proto::mvccpb::KeyValue;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::Empty;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::Outcome;
use crate::data::{self, Random};

const THREADS: usize = 2;
const DEALT_MAX: usize = 128;
const RANGE_PAIRS: u64 = data::KEYS_PER_GROUP;

/// Serves until the process is ended.
pub fn serve(port: u16) -> Outcome {
    let mut workers = Vec::new();
    for _ in 0..THREADS {
        let (worker, connections) = mpsc::channel(DEALT_MAX);
        workers.push(worker);
        thread::spawn(move || {
            if let Err(error) = work(connections) {
                eprintln!("the no-op service failed: {error}");
            }
        });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
        let mut turn = workers.iter().cycle();
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let worker = turn.next().ok_or("no thread serves")?;
            worker.send(stream.into_std()?).await?;
        }
    })
}

fn work(mut connections: mpsc::Receiver<std::net::TcpStream>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let (here, accepted) = mpsc::channel(DEALT_MAX);
        tokio::spawn(async move {
            while let Some(stream) = connections.recv().await {
                // It fails when the server is gone, and then there is nobody to tell.
                let _ = here.send(TcpStream::from_std(stream)).await;
            }
        });
        Server::builder()
            .add_service(KvServer::new(Noop::new()))
            .serve_with_incoming(ReceiverStream::new(accepted))
            .await
    })?;
    Ok(())
}

/// The same answers every time.
struct Noop {
    one: pb::RangeResponse,
    many: pb::RangeResponse,
}

impl Noop {
    fn new() -> Self {
        let mut random = Random::new(0);
        let pair = |number| KeyValue {
            key: data::key(number),
            value: data::value(&mut random),
            create_revision: 1_000_000,
            mod_revision: 1_000_000,
            version: 1,
            lease: 0,
        };
        let kvs: Vec<KeyValue> = (0..RANGE_PAIRS).map(pair).collect();
        let header = Some(header());
        let one = pb::RangeResponse { header, kvs: kvs[..1].to_vec(), more: false, count: 1 };
        Self { one, many: pb::RangeResponse { header, kvs, more: false, count: 100 } }
    }
}

fn header() -> pb::ResponseHeader {
    pb::ResponseHeader {
        cluster_id: 1 << 63,
        member_id: 1 << 63,
        revision: 1_000_000,
        raft_term: 2,
    }
}

#[tonic::async_trait]
impl Kv for Noop {
    type RangeStreamStream = Empty<Result<pb::RangeStreamResponse, Status>>;

    async fn range(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<pb::RangeResponse>, Status> {
        let request = request.into_inner();
        let answer = if request.count_only {
            pb::RangeResponse { header: Some(header()), count: 10_000, ..Default::default() }
        } else if request.range_end.is_empty() {
            self.one.clone()
        } else {
            self.many.clone()
        };
        Ok(Response::new(answer))
    }

    async fn put(&self, _: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        Ok(Response::new(pb::PutResponse { header: Some(header()), prev_kv: None }))
    }

    async fn txn(&self, _: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let put = pb::PutResponse { header: Some(header()), prev_kv: None };
        let response = Some(pb::response_op::Response::ResponsePut(put));
        let responses = vec![pb::ResponseOp { response }];
        Ok(Response::new(pb::TxnResponse { header: Some(header()), succeeded: true, responses }))
    }

    async fn range_stream(
        &self,
        _: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn delete_range(
        &self,
        _: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn compact(
        &self,
        _: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }
}
