//! Placeholder until merged.
pub(crate) fn file_name(instance: &str) -> String {
    instance.to_owned()
}
