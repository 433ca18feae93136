//! What the log says about a NACK.

use std::io::Write;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use tracing_subscriber::fmt::MakeWriter;

use crate::client::*;
use crate::fake::{Env, until};

/// Where this process's log goes. The line is written by a thread of the server's, so the subscriber is the global one.
static LOG: LazyLock<Buffer> = LazyLock::new(|| {
    let buffer = Buffer::default();
    let subscriber = tracing_subscriber::fmt().json().with_writer(buffer.clone()).finish();
    tracing::subscriber::set_global_default(subscriber).expect("nobody else sets it");
    buffer
});

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Buffer {
    type Writer = Buffer;

    fn make_writer(&'a self) -> Buffer {
        self.clone()
    }
}

/// The lines about a proxy's rejections, as JSON fields.
fn lines(proxy: &str) -> Vec<serde_json::Value> {
    let log = LOG.0.lock();
    let text = String::from_utf8_lossy(&log);
    let fields =
        text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["fields"].clone());
    fields
        .filter(|f| f["message"] == "a proxy rejected its configuration")
        .filter(|f| f["proxy"].as_str().is_some_and(|p| p.starts_with(proxy)))
        .collect()
}

#[tokio::test]
async fn a_nack_names_proxy_type_resource_words_objects_and_stages() {
    LazyLock::force(&LOG);
    let env = Env::start(&[(LISTENER, &[("0.0.0.0_80", "bad"), ("other", "good")])]).await;
    let mut proxy = Delta::open(&env, "nacker").await;
    proxy.subscribe(LISTENER, &[]).await;
    let bad = proxy.next().await;
    let words = format!("Error adding/updating listener(s) 0.0.0.0_80: {}", "no such filter ".repeat(1000));
    proxy.nack(LISTENER, &bad.nonce, &words).await;
    until(|| !lines("nacker").is_empty()).await;
    // The same once more is counted and not logged.
    proxy.nack(LISTENER, &bad.nonce, &words).await;
    proxy.quiet().await;
    assert_eq!(env.metric("pilot_total_xds_rejects", "lds"), 2.0);
    let lines = lines("nacker");
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line = &lines[0];
    assert_eq!(line["proxy"], env.server.status()[0].connection.as_ref());
    assert_eq!((line["type"].as_str(), line["resources"].as_str()), (Some("lds"), Some("0.0.0.0_80")));
    assert_eq!((line["objects"].as_str(), line["stages"].as_str()), (Some("Thing shop/0.0.0.0_80"), Some("listener")));
    assert_eq!(line["plugins"], "limits");
    assert_eq!(env.metric("trysail_plugin_rejects_total", "limits"), 1.0);
    assert_eq!(env.metric("pilot_xds_lds_reject", "nacker.shop"), 1.0);
    let detail = line["detail"].as_str().unwrap();
    assert!(detail.starts_with("Error adding/updating listener(s)") && detail.len() <= 2048);
    let status = env.server.status().remove(0);
    let lds = status.types.iter().find(|(url, _)| url.as_str() == LISTENER).unwrap().1;
    assert_eq!((lds.n_rejected, lds.acked_nonce.as_str()), (2, ""));
    assert!(lds.last_error.as_ref().unwrap().starts_with("Error adding"));
    drop(proxy);
    // Who is gone refuses nothing.
    until(|| env.metric("pilot_xds_lds_reject", "nacker.shop") == 0.0).await;
}
