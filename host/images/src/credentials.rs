//! Credentials for registries, as docker keeps them: in its file, and in secrets of the type `kubernetes.io/dockerconfigjson`.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use crate::Image;

/// Who one is at a registry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: String,
}

/// Credentials by registry.
#[derive(Clone, Default)]
pub struct Credentials(BTreeMap<String, Login>);

/// Why credentials could not be read. It never holds any of them.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CredentialsError {
    /// It is not docker's JSON.
    #[error("not the JSON that docker keeps credentials in, at line {line}, column {column}")]
    Json {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// An entry has no user and password.
    #[error(
        "auths[{0:?}]: neither `auth` nor `username` with `password` can be read (helpers and tokens are not used)"
    )]
    Entry(String),
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

impl Credentials {
    /// Reads docker's JSON.
    ///
    /// # Errors
    /// When it is none, or an entry has no user and password.
    pub fn parse(json: &[u8]) -> Result<Credentials, CredentialsError> {
        let json_error =
            |error: serde_json::Error| CredentialsError::Json { line: error.line(), column: error.column() };
        let file: File = serde_json::from_slice(json).map_err(json_error)?;
        let mut found = BTreeMap::new();
        for (name, entry) in file.auths {
            // With a helper docker leaves an empty entry.
            if entry.auth.is_none() && entry.username.is_none() {
                continue;
            }
            let login = entry.login().ok_or_else(|| CredentialsError::Entry(name.clone()))?;
            found.insert(place(&name), login);
        }
        Ok(Credentials(found))
    }

    /// For an image's registry: of several entries that of the longest path.
    pub(crate) fn of(&self, image: &Image) -> Option<&Login> {
        let whole = format!("{}/{}", image.host(), image.repository());
        let is_for =
            |place: &str| whole.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        self.0.iter().filter(|(place, _)| is_for(place)).max_by_key(|(place, _)| place.len()).map(|(_, login)| login)
    }
}

/// What an entry is for: `registry.example/path`, whichever of its many ways it was written in.
fn place(name: &str) -> String {
    let name = name.trim_start_matches("https://").trim_start_matches("http://");
    let name = name.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
    // Docker's own registry goes by several names.
    match name {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

impl Entry {
    fn login(self) -> Option<Login> {
        if let (Some(user), Some(password)) = (self.username, self.password) {
            return Some(Login { user, password });
        }
        let both = String::from_utf8(BASE64_STANDARD.decode(self.auth?.trim()).ok()?).ok()?;
        let (user, password) = both.split_once(':')?;
        Some(Login { user: user.to_owned(), password: password.trim_end_matches('\0').to_owned() })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn user(credentials: &Credentials, image: &str) -> Option<String> {
        let image = Image::parse(&format!("{image}@sha256:{}", "0".repeat(64))).unwrap();
        credentials.of(&image).map(|login| format!("{}:{}", login.user, login.password))
    }

    #[test]
    fn the_longest_entry_counts() {
        let json = json!({"auths": {
            "registry.example": {"auth": BASE64_STANDARD.encode("all:a:b")},
            "registry.example/shop": {"username": "shop", "password": "s", "email": "x"},
            "https://index.docker.io/v1/": {"auth": BASE64_STANDARD.encode("hub:h")},
            "by-helper.example": {},
        }, "credsStore": "desktop"});
        let credentials = Credentials::parse(json.to_string().as_bytes()).unwrap();
        let user = |image| user(&credentials, image);
        assert_eq!(user("registry.example/other/x").as_deref(), Some("all:a:b"));
        assert_eq!(user("registry.example/shop/x").as_deref(), Some("shop:s"));
        assert_eq!(user("registry.example/shopping/x").as_deref(), Some("all:a:b"));
        assert_eq!(user("registry.example.evil/x"), None);
        assert_eq!(user("registry.example:5000/x"), None);
        assert_eq!(user("limits").as_deref(), Some("hub:h"));
        assert_eq!(user("by-helper.example/x"), None);
        let shown = format!("{credentials:?}");
        assert!(shown.contains("registry.example/shop") && !shown.contains("all"), "{shown}");
    }

    #[test]
    fn errors_name_the_entry_and_no_secret() {
        let why = |json: &str| Credentials::parse(json.as_bytes()).unwrap_err().to_string();
        assert!(why(r#"{"auths": {"r.example": {"auth": "hunter2!"}}}"#).contains("auths[\"r.example\"]"));
        for bad in [r#"{"auths": {"r.example": {"auth": "hunter2!"}}}"#, r#"{"auths": ["hunter2"]}"#, "hunter2"] {
            assert!(!why(bad).contains("hunter2"), "{}", why(bad));
        }
        assert!(Credentials::parse(b"{}").is_ok());
    }
}
