//! The internal listener through which connections go out by HBONE, when sending that is switched on.
//!
//! Nothing here warns or rejects.

use trysail_sdk::proto::envoy::config::listener::v3::{FilterChain, Listener, listener};
use trysail_sdk::proto::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::TunnelingConfig;
use trysail_sdk::{Ctx, Failure, Item, Message, Output};

use crate::parts::{self, CHAIN_FILTERS, LISTENER_FILTER_CHAINS};
use crate::{access_log, network};

const NAME: &str = "connect_originate";

/// `listeners/connect-originate`: the listener, if HBONE is sent.
pub fn originate(ctx: &Ctx<'_>) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let [sends] = ctx.flags(["PILOT_ENABLE_SENDING_HBONE"])?;
    if !sends {
        return Ok(output);
    }
    let mut proxy = network::plain_proxy(NAME);
    // The address that the connection was made to is what the other end connects to.
    proxy.tunneling_config =
        Some(TunnelingConfig { hostname: "%DOWNSTREAM_LOCAL_ADDRESS%".into(), ..Default::default() });
    // Only failures to connect: all else is logged where the connection came from.
    proxy.access_log = access_log::of_tunnel(ctx)?;
    let base = Listener {
        name: NAME.into(),
        use_original_dst: Some(false),
        listener_specifier: Some(listener::ListenerSpecifier::InternalListener(
            listener::InternalListenerConfig::default(),
        )),
        listener_filters: vec![parts::original_destination()],
        access_log: access_log::of_listener(ctx)?,
        ..Default::default()
    };
    let chain = Message::of(&FilterChain::default()).field(CHAIN_FILTERS, network::proxy_filter(&proxy));
    output.item(Item::new(NAME, Message::of(&base).field(LISTENER_FILTER_CHAINS, chain)));
    Ok(output)
}
