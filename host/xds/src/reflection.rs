//! gRPC server reflection: what `grpcurl` asks for.

use std::collections::BTreeMap;

use prost::Message;
use prost_reflect::FileDescriptor;
use prost_types::FileDescriptorSet;

use crate::service::SERVICE_NAME;

/// The files that declare the discovery service and these others, and all that they import, encoded as a
/// `FileDescriptorSet`.
///
/// It is made from the pool of all descriptors, whose set is some 100 times as big.
pub(crate) fn descriptors(others: &[&str]) -> Vec<u8> {
    let pool = trysail_proto::descriptors::pool();
    let mut files = BTreeMap::new();
    let services = std::iter::once(&SERVICE_NAME).chain(others);
    for service in services.filter_map(|name| pool.get_service_by_name(name)) {
        collect(&service.parent_file(), &mut files);
    }
    FileDescriptorSet { file: files.into_values().collect() }.encode_to_vec()
}

fn collect(file: &FileDescriptor, files: &mut BTreeMap<String, prost_types::FileDescriptorProto>) {
    if files.insert(file.name().to_owned(), file.file_descriptor_proto().clone()).is_some() {
        return;
    }
    for imported in file.dependencies() {
        collect(&imported, files);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_the_service_and_its_imports() {
        let set = FileDescriptorSet::decode(&*descriptors(&["istio.v1.auth.IstioCertificateService"])).unwrap();
        let names: Vec<&str> = set.file.iter().map(|file| file.name()).collect();
        assert!(names.contains(&"envoy/service/discovery/v3/ads.proto"), "{names:?}");
        let services: Vec<&str> =
            set.file.iter().flat_map(|file| &file.service).map(|service| service.name()).collect();
        assert!(services.contains(&"IstioCertificateService"), "{services:?}");
        for file in &set.file {
            assert!(file.dependency.iter().all(|name| names.contains(&name.as_str())), "{}", file.name());
        }
    }
}
