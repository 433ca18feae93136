//! Bodies of responses: gRPC messages, written a piece at a time.
//!
//! The transport takes a piece when the client has room for one. A message written as a whole would stand in memory as a
//! whole, and tonic's encoder keeps the buffer of a stream's largest message for as long as the stream lives: with a thousand
//! proxies and two megabytes each, that is more than all that they are told.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http_body::Body;
use tokio::sync::mpsc;
use tonic::Status;
use tonic::codegen::http::HeaderMap;

use crate::codec::{Frame, Outgoing};

/// A piece is finished by the resource that makes it this long, bytes.
const PIECE: usize = 64 << 10;
/// The flag that says whether a message is compressed, and its length.
const PREFIX: usize = 5;

/// The body of a stream's response: what comes out of a channel, then the status in trailers.
pub(crate) struct ResponseBody {
    frames_rx: mpsc::Receiver<Result<Frame, Status>>,
    writing: Option<Writing>,
    is_ended: bool,
}

impl ResponseBody {
    pub(crate) fn new(frames_rx: mpsc::Receiver<Result<Frame, Status>>) -> Self {
        ResponseBody { frames_rx, writing: None, is_ended: false }
    }

    /// The end of the body.
    fn end(&mut self, status: &Status) -> Result<http_body::Frame<Bytes>, Status> {
        self.is_ended = true;
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers)?;
        Ok(http_body::Frame::trailers(trailers))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        if self.is_ended {
            return Poll::Ready(None);
        }
        let mut writing = match self.writing.take() {
            Some(writing) => writing,
            None => match ready!(self.frames_rx.poll_recv(cx)) {
                Some(Ok(frame)) => match Writing::of(frame) {
                    Ok(writing) => writing,
                    Err(status) => return Poll::Ready(Some(self.end(&status))),
                },
                Some(Err(status)) => return Poll::Ready(Some(self.end(&status))),
                None => return Poll::Ready(Some(self.end(&Status::ok("")))),
            },
        };
        let piece = writing.piece();
        if writing.left > 0 {
            self.writing = Some(writing);
        }
        Poll::Ready(Some(Ok(http_body::Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_ended
    }
}

/// A message on its way.
struct Writing {
    frame: Frame,
    /// Bytes of the message, without its prefix.
    len: u32,
    /// Bytes that no piece has yet, the prefix among them.
    left: usize,
    /// The first resource that no piece has yet.
    next: usize,
}

impl Writing {
    fn of(frame: Frame) -> Result<Self, Status> {
        let len = match &frame {
            Frame::Resources(response) => response.encoded_len(),
            Frame::Message(message) => message.len(),
        };
        let Ok(fits) = u32::try_from(len) else {
            return Err(Status::resource_exhausted(format!(
                "a response of {len} bytes is more than a gRPC message holds"
            )));
        };
        Ok(Writing { frame, len: fits, left: len + PREFIX, next: 0 })
    }

    /// The next piece.
    fn piece(&mut self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.left.min(PIECE));
        if self.left == self.len as usize + PREFIX {
            // Not compressed.
            out.put_u8(0);
            out.put_u32(self.len);
            if let Frame::Resources(response) = &self.frame {
                response.write_head(&mut out);
            }
        }
        match &self.frame {
            Frame::Message(message) => out.put_slice(message),
            Frame::Resources(response) => write_resources(response, &mut self.next, &mut out),
        }
        self.left -= out.len();
        out.freeze()
    }
}

/// Writes resources from `next` on until there is a piece, and what follows them after the last.
fn write_resources(response: &Outgoing, next: &mut usize, out: &mut BytesMut) {
    while *next < response.resources.len() {
        if out.len() >= PIECE {
            return;
        }
        response.write_resource(*next, out);
        *next += 1;
    }
    response.write_tail(out);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost::Message;
    use trysail_model::ids::type_urls;
    use trysail_model::{Resource, Rope};
    use trysail_proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;

    use super::*;
    use crate::request::Protocol;

    async fn next(body: &mut ResponseBody) -> Option<Result<http_body::Frame<Bytes>, Status>> {
        std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
    }

    /// A response of resources of these lengths.
    fn response(lengths: &[usize]) -> Outgoing {
        let resource = |(at, len): (usize, &usize)| {
            let body = Rope::from_bytes(vec![at as u8; *len]);
            let version = body.fingerprint();
            (Arc::new(Resource { name: format!("r{at}").as_str().into(), version, body }), version)
        };
        Outgoing {
            protocol: Protocol::Delta,
            type_url: type_urls::CLUSTER.into(),
            version: "v".into(),
            nonce: "n".into(),
            resources: lengths.iter().enumerate().map(resource).collect(),
            removed: vec!["gone".into()],
        }
    }

    #[tokio::test]
    async fn a_long_message_comes_in_pieces_and_the_status_after_it() {
        let lengths: Vec<usize> = (0..200).map(|at| if at == 100 { 3 * PIECE } else { 700 + at }).collect();
        let (tx, rx) = mpsc::channel(4);
        tx.try_send(Ok(Frame::Resources(response(&lengths)))).unwrap();
        tx.try_send(Ok(Frame::Resources(response(&[])))).unwrap();
        tx.try_send(Ok(Frame::Message(Bytes::from_static(b"whole")))).unwrap();
        tx.try_send(Err(Status::unavailable("over"))).unwrap();
        let mut body = ResponseBody::new(rx);
        let (mut all, mut pieces) = (Vec::new(), Vec::new());
        let trailers = loop {
            match next(&mut body).await.unwrap().unwrap().into_data() {
                Ok(data) => {
                    pieces.push(data.len());
                    all.extend_from_slice(&data);
                }
                Err(other) => break other.into_trailers().unwrap(),
            }
        };
        assert!(next(&mut body).await.is_none());
        assert_eq!(trailers["grpc-status"], "14");
        assert_eq!(trailers["grpc-message"], "over");
        // The long resource is in one piece; nothing else makes a piece long.
        assert_eq!(pieces.iter().filter(|len| **len > PIECE + 1_000).count(), 1, "{pieces:?}");
        assert!(pieces.len() > 3, "{pieces:?}");
        let mut messages = Vec::new();
        let mut rest = all.as_slice();
        while let [0, a, b, c, d, after @ ..] = rest {
            let (message, after) = after.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
            messages.push(message);
            rest = after;
        }
        assert!(rest.is_empty());
        let decoded = DeltaDiscoveryResponse::decode(messages[0]).unwrap();
        let bodies = decoded.resources.iter().map(|resource| resource.resource.as_ref().unwrap().value.len());
        assert!(bodies.eq(lengths), "{:?}", decoded.resources.len());
        assert_eq!(decoded.removed_resources, ["gone"]);
        assert_eq!(DeltaDiscoveryResponse::decode(messages[1]).unwrap().nonce, "n");
        assert_eq!(messages[2], b"whole");
    }

    #[tokio::test]
    async fn a_closed_channel_ends_well() {
        let (tx, rx) = mpsc::channel(1);
        drop(tx);
        let mut body = ResponseBody::new(rx);
        let trailers = next(&mut body).await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "0");
    }
}
