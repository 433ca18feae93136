//! Where in an image the component is.
//!
//! | who makes them | the layer's media type |
//! | --- | --- |
//! | the Wasm OCI artifact of the CNCF, `wkg`, `trysail plugin push` | `application/wasm` |
//! | older tools of the Bytecode Alliance | `application/vnd.bytecodealliance.wasm.component.layer.v0+wasm` |
//! | older tools of OCI | `application/vnd.wasm.content.layer.v1+wasm` |
//! | Solo's specification, which Istio's WasmPlugin takes | `application/vnd.module.wasm.content.layer.v1+wasm` |
//! | `docker build`, which Istio's WasmPlugin takes too | a packed tar: `plugin.wasm` in the last layer |

use std::io::Read as _;

use bytes::Bytes;
use oci_client::manifest::{
    IMAGE_DOCKER_LAYER_GZIP_MEDIA_TYPE, IMAGE_LAYER_GZIP_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE,
    IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageIndex,
    OciImageManifest, WASM_LAYER_MEDIA_TYPE,
};
use serde::Deserialize;

use crate::Error;
use crate::image::is_sha256;

/// Layer of the Wasm OCI artifact.
pub(crate) const WASM: &str = "application/wasm";
/// Its configuration.
pub(crate) const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";

/// Layers that are a component as it is.
const PLAIN: [&str; 4] = [
    WASM,
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
    WASM_LAYER_MEDIA_TYPE,
    "application/vnd.module.wasm.content.layer.v1+wasm",
];
/// Layers that are archives.
const PACKED: [&str; 2] = [IMAGE_LAYER_GZIP_MEDIA_TYPE, IMAGE_DOCKER_LAYER_GZIP_MEDIA_TYPE];
/// The component's name in an archive.
const FILE: &str = "plugin.wasm";

/// What manifests may be, for who asks for one.
pub(crate) const MANIFESTS: [&str; 4] =
    [OCI_IMAGE_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE];

/// How a component lies in its blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// As it is.
    Plain,
    /// As `plugin.wasm` in an archive.
    Archive,
}

/// What a manifest leads to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Leads {
    /// To another manifest, by its digest.
    To(String),
    /// To the blob with the component, by its digest.
    Component { digest: String, packing: Packing },
}

/// Of a manifest: what tells which of the two kinds it is.
#[derive(Deserialize)]
struct Kind {
    manifests: Option<serde_json::Value>,
}

/// Reads a manifest.
///
/// # Errors
/// When it is none, or leads to no component, or to one of several.
pub(crate) fn read(manifest: &[u8]) -> Result<Leads, Error> {
    let wrong = |error: serde_json::Error| Error::Layout(format!("its manifest cannot be read: {error}"));
    let kind: Kind = serde_json::from_slice(manifest).map_err(wrong)?;
    if kind.manifests.is_some() {
        let index: OciImageIndex = serde_json::from_slice(manifest).map_err(wrong)?;
        return of_index(&index);
    }
    let manifest: OciImageManifest = serde_json::from_slice(manifest).map_err(wrong)?;
    let plain: Vec<&OciDescriptor> =
        manifest.layers.iter().filter(|layer| PLAIN.contains(&&*layer.media_type)).collect();
    let (layer, packing) = match (&plain[..], manifest.layers.last()) {
        ([layer], _) => (*layer, Packing::Plain),
        ([], Some(last)) if PACKED.contains(&&*last.media_type) => (last, Packing::Archive),
        ([], _) => {
            let mut types: Vec<&str> = manifest.layers.iter().map(|layer| &*layer.media_type).collect();
            types.dedup();
            return Err(Error::Layout(format!(
                "there is no component in it: its layers are {}, and {WASM} is wanted",
                if types.is_empty() { "none".to_owned() } else { types.join(", ") }
            )));
        }
        (several, _) => {
            return Err(Error::Layout(format!("it has {} layers that are components, and not one", several.len())));
        }
    };
    checked(&layer.digest).map(|digest| Leads::Component { digest, packing })
}

/// An index names images for several platforms. Ours is `wasm`, whatever machine this is.
fn of_index(index: &OciImageIndex) -> Result<Leads, Error> {
    let is_wasm = |platform: &str| platform == "wasm";
    let named: Vec<_> = index
        .manifests
        .iter()
        .filter(|entry| entry.platform.as_ref().is_some_and(|of| is_wasm(&of.architecture.to_string())))
        .collect();
    let entry = match (&named[..], &index.manifests[..]) {
        ([entry], _) => entry,
        (_, [entry]) => entry,
        (_, all) => {
            return Err(Error::Layout(format!(
                "it is an index of {} images, of which {} are for wasm: name one of them by its own digest",
                all.len(),
                named.len()
            )));
        }
    };
    checked(&entry.digest).map(Leads::To)
}

fn checked(digest: &str) -> Result<String, Error> {
    let wrong = || Error::Layout(format!("its manifest names {digest:?}, which is no digest of SHA-256"));
    is_sha256(digest).then(|| digest.to_owned()).ok_or_else(wrong)
}

/// The component in its blob, of at most `limit` bytes.
///
/// # Errors
/// When an archive is none, or holds no component, or one that is longer.
pub(crate) fn unpack(blob: Bytes, packing: Packing, limit: usize) -> Result<Bytes, Error> {
    if packing == Packing::Plain {
        return Ok(blob);
    }
    // What is beside it is read over, up to as much again.
    let bound = (limit as u64).saturating_mul(2);
    let mut archive = tar::Archive::new(flate2::read::MultiGzDecoder::new(&*blob).take(bound));
    let broken = |error: std::io::Error| Error::Layout(format!("its layer is no packed archive: {error}"));
    for entry in archive.entries().map_err(broken)? {
        let entry = entry.map_err(broken)?;
        let is_it = entry.path().is_ok_and(|path| path.file_name().is_some_and(|name| name == FILE));
        if !is_it || !entry.header().entry_type().is_file() {
            continue;
        }
        let mut component = Vec::new();
        entry.take(limit as u64 + 1).read_to_end(&mut component).map_err(broken)?;
        if component.len() > limit {
            return Err(Error::TooLong { what: format!("{FILE} in it"), limit });
        }
        return Ok(component.into());
    }
    Err(Error::Layout(format!("there is no {FILE} in the first {bound} bytes of its last layer")))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use serde_json::{Value, json};

    use super::*;

    fn sha(hex: char) -> String {
        format!("sha256:{}", hex.to_string().repeat(64))
    }

    fn manifest(layers: &[&str]) -> Vec<u8> {
        let layer = |(number, kind): (usize, &&str)| json!({"mediaType": kind, "size": 1, "digest": sha(char::from_digit(number as u32, 16).unwrap())});
        let layers: Vec<Value> = layers.iter().enumerate().map(layer).collect();
        let config = json!({"mediaType": WASM_CONFIG, "digest": sha('f'), "size": 2});
        json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string().into()
    }

    fn component(layers: &[&str]) -> (char, Packing) {
        match read(&manifest(layers)).unwrap() {
            Leads::Component { digest, packing } => (digest.chars().last().unwrap(), packing),
            Leads::To(_) => panic!("it is no index"),
        }
    }

    #[test]
    fn a_component_is_found_however_it_was_packed() {
        for plain in PLAIN {
            assert_eq!(component(&[plain]), ('0', Packing::Plain), "{plain}");
        }
        // Solo's images have their configuration as a layer beside it.
        assert_eq!(component(&["application/vnd.module.wasm.config.v1+json", PLAIN[3]]), ('1', Packing::Plain));
        for packed in PACKED {
            assert_eq!(component(&[packed]), ('0', Packing::Archive), "{packed}");
            assert_eq!(component(&[packed, packed]), ('1', Packing::Archive), "the last one");
        }
    }

    #[test]
    fn what_leads_to_no_component_says_why() {
        let why = |layers: &[&str]| read(&manifest(layers)).unwrap_err().to_string();
        assert!(why(&[]).contains("its layers are none"));
        assert!(why(&["application/json", "application/json"]).contains("its layers are application/json, and"));
        assert!(why(&[WASM, WASM]).contains("2 layers"));
        assert!(read(b"{").unwrap_err().to_string().contains("cannot be read"));
        let bad = String::from_utf8(manifest(&[WASM])).unwrap().replace(&sha('0'), "sha256:../../etc/passwd");
        assert!(read(bad.as_bytes()).unwrap_err().to_string().contains("no digest of SHA-256"));
    }

    #[test]
    fn an_index_leads_on_when_it_is_clear_where_to() {
        let entry = |architecture: &str, hex: char| {
            json!({"mediaType": OCI_IMAGE_MEDIA_TYPE, "size": 1, "digest": sha(hex),
                "platform": {"architecture": architecture, "os": "linux"}})
        };
        let index = |entries: &[Value]| {
            read(
                json!({"schemaVersion": 2, "mediaType": OCI_IMAGE_INDEX_MEDIA_TYPE, "manifests": entries})
                    .to_string()
                    .as_bytes(),
            )
        };
        assert_eq!(index(&[entry("amd64", 'a'), entry("wasm", 'b')]).unwrap(), Leads::To(sha('b')));
        assert_eq!(index(&[entry("amd64", 'a')]).unwrap(), Leads::To(sha('a')));
        let why = index(&[entry("amd64", 'a'), entry("arm64", 'b')]).unwrap_err().to_string();
        assert!(why.contains("an index of 2 images"), "{why}");
        assert!(index(&[]).is_err());
    }

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        packed(&builder.into_inner().unwrap())
    }

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn archives_are_unpacked_within_bounds() {
        let open = |blob: Vec<u8>| unpack(blob.into(), Packing::Archive, 1000);
        assert_eq!(open(archive(&[("a", b"x"), ("./plugin.wasm", b"wasm")])).unwrap(), &b"wasm"[..]);
        assert_eq!(open(archive(&[("plugin.wasm", &[7; 1000])])).unwrap(), &[7; 1000][..]);
        let why = |blob| open(blob).unwrap_err().to_string();
        assert!(why(archive(&[("plugin.wasm", &[7; 1001])])).contains("longer than 1000 bytes"));
        assert!(why(archive(&[("other.wasm", b"x")])).contains("no plugin.wasm"));
        assert!(why(b"no archive".to_vec()).contains("no packed archive"));
        // What unpacks to very much is given up early: the component stands behind the bound.
        let bomb = archive(&[("zeros", &vec![0; 50 << 20]), ("plugin.wasm", b"wasm")]);
        assert!(bomb.len() < 1 << 20);
        assert!(open(bomb).is_err());
        // A file that claims to be huge takes no memory that it does not fill.
        let mut lying = tar::Header::new_gnu();
        lying.set_path("plugin.wasm").unwrap();
        lying.set_size(u64::MAX / 4);
        lying.set_cksum();
        assert!(open(packed(lying.as_bytes())).map_or(true, |component| component.is_empty()));
    }
}
