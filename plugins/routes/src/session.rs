//! Sticky sessions: a label of a service asks for a cookie or header that pins a client to an endpoint.
//!
//! Off unless `PILOT_ENABLE_PERSISTENT_SESSION_FILTER` is set. Nothing warns or rejects.

use std::collections::BTreeMap;

use trysail_sdk::facts::Service;
use trysail_sdk::prost_types::Any;
use trysail_sdk::proto::any::pack;
use trysail_sdk::proto::envoy::config::core::v3::TypedExtensionConfig;
use trysail_sdk::proto::envoy::config::route::v3::VirtualHost;
use trysail_sdk::proto::envoy::extensions::filters::http::stateful_session::v3::{
    StatefulSession, StatefulSessionPerRoute, stateful_session_per_route::Override,
};
use trysail_sdk::proto::envoy::extensions::http::stateful_session::{
    cookie::v3::CookieBasedSessionState, header::v3::HeaderBasedSessionState,
};
use trysail_sdk::proto::envoy::r#type::http::v3::Cookie;
use trysail_sdk::{Ctx, Failure, Item, Message, Output};

/// Name of the filter, under which routes and virtual hosts override it.
pub const FILTER: &str = "envoy.filters.http.stateful_session";

/// May services have sticky sessions at all?
pub fn enabled(ctx: &Ctx<'_>) -> Result<bool, Failure> {
    Ok(ctx.flags(["PILOT_ENABLE_PERSISTENT_SESSION_FILTER"])?[0])
}

/// `session`: the fields that a service adds to its virtual host; no item if it has no sticky sessions.
pub fn virtual_host_fields(ctx: &Ctx<'_>, service_key: &str) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let Some(service) = ctx.service(service_key)? else { return Ok(output) };
    if let Some(session) = of_service(ctx, &service)? {
        let typed_per_filter_config = BTreeMap::from([(FILTER.to_owned(), per_route(session))]);
        let fields = VirtualHost { typed_per_filter_config, ..Default::default() };
        output.item(Item::new("session", Message::of(&fields)));
    }
    Ok(output)
}

/// The session that a service's labels ask for. Only to be asked when sessions are `enabled`.
pub fn of_service(ctx: &Ctx<'_>, service: &Service) -> Result<Option<StatefulSession>, Failure> {
    let names = ctx.features(&["PILOT_PERSISTENT_SESSION_LABEL", "PILOT_PERSISTENT_SESSION_HEADER_LABEL"])?;
    let label = |name: &str| service.labels.get(name).filter(|value| !value.is_empty());
    let (name, state) = if let Some(cookie) = label(&names[0]) {
        // Without a lifetime: the cookie goes when the browser does.
        let (name, path) = cookie.split_once(':').unwrap_or((cookie, "/"));
        let cookie = Cookie { name: name.to_owned(), path: path.to_owned(), ..Default::default() };
        ("envoy.http.stateful_session.cookie", pack(&CookieBasedSessionState { cookie: Some(cookie) }))
    } else if let Some(header) = label(&names[1]) {
        ("envoy.http.stateful_session.header", pack(&HeaderBasedSessionState { name: header.clone() }))
    } else {
        return Ok(None);
    };
    let session_state = Some(TypedExtensionConfig { name: name.to_owned(), typed_config: Some(state) });
    Ok(Some(StatefulSession { session_state, ..Default::default() }))
}

/// The filter's override for a route or virtual host.
pub fn per_route(session: StatefulSession) -> Any {
    pack(&StatefulSessionPerRoute { r#override: Some(Override::StatefulSession(session)) })
}
