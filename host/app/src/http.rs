//! A request over HTTP/1.1 to a server of the mesh's own: without TLS, one on a connection.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Body;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, ToSocketAddrs};

/// Whatever went wrong.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Sends a request, which has its `host` and a path, and reads the whole answer, of `limit` bytes at most.
///
/// # Errors
/// When nobody is there, the connection breaks, or the answer is longer.
pub async fn exchange<B>(
    address: impl ToSocketAddrs,
    request: Request<B>,
    limit: usize,
) -> Result<Response<Bytes>, Error>
where
    B: Body<Data: Send, Error: Into<Error>> + Send + 'static,
{
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection broke");
        }
    });
    let (parts, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, limit).collect().await?.to_bytes();
    Ok(Response::from_parts(parts, body))
}
