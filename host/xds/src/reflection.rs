//! gRPC server reflection: what `grpcurl` asks for.

use std::collections::BTreeMap;

use prost::Message;
use prost_reflect::FileDescriptor;
use prost_types::FileDescriptorSet;

use crate::service::SERVICE_NAME;

/// The file that declares the discovery service, and all that it imports, encoded as a `FileDescriptorSet`.
///
/// It is made from the pool of all descriptors, whose set is some 100 times as big.
pub(crate) fn descriptors() -> Vec<u8> {
    let service = trysail_proto::descriptors::pool().get_service_by_name(SERVICE_NAME);
    let mut files = BTreeMap::new();
    if let Some(service) = service {
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
        let set = FileDescriptorSet::decode(&*descriptors()).unwrap();
        let names: Vec<&str> = set.file.iter().map(|file| file.name()).collect();
        assert!(names.contains(&"envoy/service/discovery/v3/ads.proto"), "{names:?}");
        for file in &set.file {
            assert!(file.dependency.iter().all(|name| names.contains(&name.as_str())), "{}", file.name());
        }
    }
}
