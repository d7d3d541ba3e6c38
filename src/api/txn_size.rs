//! How many parts a transaction has, before it is decoded.
//!
//! An empty operation is two bytes on the wire and some seventy times as much in memory, and a message of the largest size
//! has a million of them. So they are counted where they lie; what has far too many is refused unread.

use prost::encoding::{WireType, decode_key, decode_varint};

/// Compares and operations, on all levels together, that are decoded in any case. The limit of a transaction itself
/// is looked at later, in etcd's order of checks.
pub(super) const PARTS_MAX: usize = 1 << 16;

/// `TxnRequest.compare`, `.success` and `.failure`, and `RequestOp.request_txn`.
const COMPARE: u32 = 1;
const SUCCESS: u32 = 2;
const FAILURE: u32 = 3;
const NESTED: u32 = 4;

/// Whether a transaction has more than `max` compares, operations and transactions within. Costs a look at each
/// field's head; stops at what cannot be read, which decoding will refuse.
pub(super) fn has_more_parts_than(max: usize, message: &[u8]) -> bool {
    // Each takes two bytes at least, so most messages need no look.
    if message.len() / 2 <= max {
        return false;
    }
    let mut parts = 0;
    let mut open = vec![message];
    while let Some(mut txn) = open.pop() {
        while let Some((tag, body)) = next_field(&mut txn) {
            parts += usize::from(matches!(tag, COMPARE | SUCCESS | FAILURE));
            if matches!(tag, SUCCESS | FAILURE) {
                let mut op = body;
                while let Some((tag, body)) = next_field(&mut op) {
                    if tag == NESTED {
                        parts += 1;
                        open.push(body);
                    }
                    if parts > max {
                        return true;
                    }
                }
            }
            if parts > max {
                return true;
            }
        }
    }
    false
}

/// The next field, with its bytes if it has a length.
fn next_field<'a>(message: &mut &'a [u8]) -> Option<(u32, &'a [u8])> {
    let (tag, wire_type) = decode_key(message).ok()?;
    let length = match wire_type {
        WireType::Varint => {
            decode_varint(message).ok()?;
            0
        }
        WireType::LengthDelimited => usize::try_from(decode_varint(message).ok()?).ok()?,
        WireType::ThirtyTwoBit => 4,
        WireType::SixtyFourBit => 8,
        WireType::StartGroup | WireType::EndGroup => return None,
    };
    let (body, rest) = message.split_at_checked(length)?;
    *message = rest;
    Some((tag, body))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;
    use starling_proto::etcdserverpb::{Compare, RequestOp, TxnRequest, request_op::Request};

    use super::*;

    fn nested(txn: TxnRequest) -> RequestOp {
        RequestOp { request: Some(Request::RequestTxn(txn)) }
    }

    fn any_txn() -> impl Strategy<Value = TxnRequest> {
        let flat = (0..4_usize, 0..4_usize, 0..4_usize);
        let flat = flat.prop_map(|(compares, success, failure)| TxnRequest {
            compare: vec![Compare::default(); compares],
            success: vec![RequestOp::default(); success],
            failure: vec![RequestOp::default(); failure],
        });
        flat.prop_recursive(4, 40, 3, |inner| {
            (prop::collection::vec(inner, 1..3), 0..3_usize).prop_map(|(inner, compares)| {
                TxnRequest {
                    compare: vec![Compare::default(); compares],
                    success: inner.into_iter().map(nested).collect(),
                    failure: Vec::new(),
                }
            })
        })
    }

    /// Compares, operations and transactions within, as they are once decoded.
    fn parts(txn: &TxnRequest) -> usize {
        let within = |op: &RequestOp| match &op.request {
            Some(Request::RequestTxn(txn)) => 2 + parts(txn),
            _ => 1,
        };
        txn.compare.len() + txn.success.iter().chain(&txn.failure).map(within).sum::<usize>()
    }

    proptest! {
        #[test]
        fn all_parts_are_counted(txn in any_txn()) {
            let (message, parts) = (txn.encode_to_vec(), parts(&txn));
            prop_assert!(!has_more_parts_than(parts, &message));
            prop_assert!(parts == 0 || has_more_parts_than(parts - 1, &message));
        }

        #[test]
        fn any_bytes_are_looked_at(message: Vec<u8>) {
            prop_assert!(!has_more_parts_than(message.len(), &message));
        }
    }
}
