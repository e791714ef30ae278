//! One GET over a Unix socket, bounded in time and size.

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long an answer may take, from connecting to its last byte.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// There is no socket.
    #[error("there is no socket")]
    NoSocket,
    /// The socket can't be connected to.
    #[error("can't connect to its socket: {0}; run droptrace as root, or look whether the agent runs")]
    Refused(io::Error),
    /// It took too long.
    #[error("no answer to GET {0} in time: the agent hangs, or it is not its socket")]
    Silent(String),
    /// The answer is too long.
    #[error("the answer to GET {0} is longer than is read")]
    TooLong(String),
    /// What was asked for is not there, or not with this version.
    #[error("not there")]
    NotFound,
    /// It answered with an error.
    #[error("GET {0} was answered with {1}")]
    Status(String, StatusCode),
    /// It does not speak HTTP, or broke off.
    #[error("GET {0}: {1}")]
    Broken(String, String),
}

/// The body of the answer to `GET PATH`, from the first socket that is there.
pub(super) async fn get(sockets: &[PathBuf], path: &str, longest: usize) -> Result<String, Failure> {
    let asked = async {
        let stream = connect(sockets).await?;
        let broken = |error: &dyn std::fmt::Display| Failure::Broken(path.to_owned(), error.to_string());
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        let request =
            Request::get(path).header(header::HOST, "localhost").header(header::ACCEPT, "application/json");
        let request = request.body(Empty::<bytes::Bytes>::new()).map_err(|error| broken(&error))?;
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
            match answer.status() {
                StatusCode::OK => {}
                // 410 and 501: of an API that this version has no more.
                StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::NOT_IMPLEMENTED => {
                    return Err(Failure::NotFound);
                }
                status => return Err(Failure::Status(path.to_owned(), status)),
            }
            let body = Limited::new(answer.into_body(), longest).collect().await.map_err(|error| {
                if error.is::<LengthLimitError>() {
                    Failure::TooLong(path.to_owned())
                } else {
                    broken(&error)
                }
            })?;
            Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
        };
        // The connection does its part beside; it ends when nobody sends any more.
        let drive = async {
            let _ = connection.await;
            std::future::pending().await
        };
        tokio::select! {
            answer = exchange => answer,
            never = drive => never,
        }
    };
    timeout(PATIENCE, asked).await.unwrap_or_else(|_elapsed| Err(Failure::Silent(path.to_owned())))
}

async fn connect(sockets: &[PathBuf]) -> Result<UnixStream, Failure> {
    let mut failure = Failure::NoSocket;
    for socket in sockets {
        match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => failure = Failure::Refused(error),
        }
    }
    Err(failure)
}
