//! Weights that others saved: safetensors, and what `torch.save` writes, in its present form (a ZIP archive) and its old one.
//!
//! Such a file may come from anywhere. Its pickle is read as data (see [`pickle`]), and every size in it is held against the file's own, so that
//! a file costs no more memory than a few times its length. `candle_core::pickle` is not used: it copies values where a pickle repeats them, panics
//! where arguments are missing, and inflates compressed entries.

mod archive;
mod pickle;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context as _;
use dcu_artifact::{Array, Tensor};
use dcu_stage::Failure;
use safetensors::{Dtype, SafeTensors};

use archive::{Archive, slice, u64_at};
use pickle::{Id, Pickle, Value};

/// The tensors of a state dict.
#[derive(Debug)]
pub(super) struct Weights {
    /// By name, wrappers' prefixes taken off; floating-point numbers of any width as 32-bit ones.
    pub(super) tensors: BTreeMap<String, Tensor>,
    /// What the user should know of how they were read.
    pub(super) notes: Vec<String>,
}

/// Tensors with their bytes, little-endian and row-major.
type Raw<'a> = Vec<(String, Dtype, Vec<usize>, Cow<'a, [u8]>)>;

/// What wrappers put before every name: data-parallel training, compilation, a trainer's class around the network.
const PREFIXES: [&str; 3] = ["module.", "_orig_mod.", "model."];
/// The tensors of a file may repeat its bytes, as tied weights do, so many times.
const MOST_REPEATED: usize = 4;
/// Dicts within dicts are looked through so far.
const DEEPEST: usize = 2;

/// Reads a file; what it is its content tells, not its name. `key` is the wrapper to read, where a file holds several state dicts.
///
/// # Errors
/// Says what the file is instead, or what is wrong with it.
pub(super) fn read(path: &Path, key: Option<&str>) -> anyhow::Result<Weights> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    read_bytes(&bytes, key).map_err(|Failure { message, remedy }| {
        Failure::new(format!("`{}` cannot be read as weights: {message}", path.display()), remedy).into()
    })
}

fn read_bytes(bytes: &[u8], key: Option<&str>) -> Result<Weights, Failure> {
    let mut notes = Vec::new();
    let raw = match bytes {
        [b'P', b'K', 3, 4, ..] => from_archive(bytes, key, &mut notes)?,
        [0x80, ..] => from_old_file(bytes, key, &mut notes)?,
        _ if bytes.get(8) == Some(&b'{') => from_safetensors(bytes, key)?,
        _ => return Err(no_weights(bytes)),
    };
    let raw = without_prefixes(raw, &mut notes);
    let (mut tensors, mut converted) = (BTreeMap::new(), BTreeMap::<String, usize>::new());
    for (name, dtype, shape, bytes) in raw {
        let tensor = match single(dtype, &bytes) {
            Some(values) => {
                *converted.entry(format!("{dtype:?}")).or_default() += 1;
                Some(Tensor::F32(Array::new(shape, values)))
            }
            None => Tensor::from_bytes(dtype, shape, &bytes),
        };
        let tensor = tensor.ok_or_else(|| {
            Failure::new(
                format!("`{name}` has the type {dtype:?}"),
                "save the weights as floating-point numbers, such as `model.float().state_dict()`",
            )
        })?;
        tensors.insert(name, tensor);
    }
    if !converted.is_empty() {
        let counted: Vec<String> = converted.into_iter().map(|(dtype, count)| format!("{count} of {dtype}")).collect();
        notes.push(format!("tensors were converted to 32-bit floating-point numbers: {}", counted.join(", ")));
    }
    Ok(Weights { tensors, notes })
}

fn no_weights(bytes: &[u8]) -> Failure {
    let what = match bytes {
        [] => "it is empty",
        [b'v', b'e', b'r', b's', b'i', b'o', b'n', b' ', b'h', b't', b't', b'p', b's', ..] => {
            "it is a pointer of Git LFS, not the file itself"
        }
        [b'<', ..] => "it is a web page",
        _ => "it is neither safetensors nor what `torch.save` writes",
    };
    Failure::new(
        what,
        "save it in PyTorch with `torch.save(model.state_dict(), PATH)` or `safetensors.torch.save_file(model.state_dict(), PATH)`",
    )
}

fn from_safetensors<'a>(bytes: &'a [u8], key: Option<&str>) -> Result<Raw<'a>, Failure> {
    if let Some(key) = key {
        let message = format!("it is safetensors, which has no wrappers such as `{key}`");
        return Err(Failure::new(message, "leave out `key`"));
    }
    let file = SafeTensors::deserialize(bytes).map_err(|error| {
        let remedy = "copy it anew, or save it in PyTorch with `safetensors.torch.save_file(model.state_dict(), PATH)`";
        Failure::new(format!("it seems to be safetensors, but is damaged ({error})"), remedy)
    })?;
    Ok(file.iter().map(|(name, view)| (name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().into())).collect())
}

/// The remedy for a file that is not as PyTorch has written it.
fn damaged(reason: String) -> Failure {
    Failure::new(reason, "copy or download it anew, or save it again in PyTorch with `torch.save(model.state_dict(), PATH)`")
}

/// What `torch.save` has written since PyTorch 1.6.
fn from_archive<'a>(bytes: &'a [u8], key: Option<&str>, notes: &mut Vec<String>) -> Result<Raw<'a>, Failure> {
    let archive = Archive::open(bytes).map_err(damaged)?;
    let main = archive.names().find(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
    let Some(folder) = main.and_then(|name| name.strip_suffix("data.pkl")) else {
        let remedy = "give a file that `torch.save(model.state_dict(), PATH)` has written";
        return Err(Failure::new("it is a ZIP archive, but none of PyTorch's", remedy));
    };
    if archive.names().any(|name| name.strip_prefix(folder).is_some_and(|name| name == "constants.pkl" || name.starts_with("code/"))) {
        let remedy = "save its weights: `torch.save(torch.jit.load(PATH).state_dict(), PATH)`";
        return Err(Failure::new("it is a program of TorchScript", remedy));
    }
    if archive.read(&format!("{folder}byteorder")).is_ok_and(|order| order != b"little") {
        return Err(Failure::new("its bytes are in the order of another kind of machine", "save it as safetensors there"));
    }
    let pickle = Pickle::read(archive.read(&format!("{folder}data.pkl")).map_err(damaged)?).map_err(damaged)?;
    let found = state_dict(&pickle, key, notes)?;
    let mut storages = BTreeMap::new();
    for (_, described) in &found {
        if !storages.contains_key(described.storage) {
            let storage = archive.read(&format!("{folder}data/{}", described.storage)).map_err(damaged)?;
            storages.insert(described.storage, storage);
        }
    }
    gathered(found, &storages, bytes.len())
}

/// What `torch.save` wrote before: a pickle with a mark, two of versions, that of the object, one of the keys of the storages, then their values.
fn from_old_file<'a>(bytes: &'a [u8], key: Option<&str>, notes: &mut Vec<String>) -> Result<Raw<'a>, Failure> {
    /// The mark, a number of ten bytes, with the instructions around it.
    const MARK: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    if !bytes.starts_with(MARK) {
        let remedy = "load it in Python and save what it holds with `torch.save(model.state_dict(), PATH)`";
        return Err(Failure::new("it is a pickle of Python, but none that `torch.save` has written", remedy));
    }
    let mut place = MARK.len();
    let mut next = || -> Result<Pickle<'_>, Failure> {
        let pickle = Pickle::read(&bytes[place..]).map_err(damaged)?;
        place += pickle.length;
        Ok(pickle)
    };
    next()?;
    next()?;
    let pickle = next()?;
    let keys = next()?;
    let found = state_dict(&pickle, key, notes)?;
    let widths: BTreeMap<&str, usize> = pickle
        .values
        .iter()
        .filter_map(|value| match value {
            Value::Persistent(id) => storage(&pickle, *id).ok().map(|storage| (storage.key, storage.dtype.bitsize() / 8)),
            _ => None,
        })
        .collect();
    let listed = match &keys.values[keys.root] {
        Value::List(listed) => listed.as_slice(),
        _ => &[],
    };
    let (mut storages, mut place) = (BTreeMap::new(), place as u64);
    for &id in listed {
        let key = keys.text(id).ok_or_else(|| damaged("its list of storages is damaged".into()))?;
        let Some(&width) = widths.get(key) else {
            return Err(Failure::new(
                "it has values of a type that is not known here",
                "save the weights alone, `torch.save(model.state_dict(), PATH)`",
            ));
        };
        let length = u64_at(bytes, place).map_err(damaged)?.saturating_mul(width as u64);
        storages.insert(key, slice(bytes, place + 8, length).map_err(damaged)?);
        place += 8 + length;
    }
    gathered(found, &storages, bytes.len())
}

/// A tensor as a pickle describes it.
#[derive(Debug)]
struct Described<'a> {
    storage: &'a str,
    dtype: Dtype,
    /// The values of the storage.
    available: usize,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

/// Where values of a tensor lie.
struct Storage<'a> {
    key: &'a str,
    dtype: Dtype,
    available: usize,
    offset: usize,
}

impl Described<'_> {
    fn count(&self) -> Option<usize> {
        self.shape.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent))
    }

    fn is_floating(&self) -> bool {
        matches!(self.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
    }

    /// The place behind its last value, none where that cannot be counted.
    fn end(&self) -> Option<usize> {
        let mut steps = self.shape.iter().zip(&self.strides);
        steps.try_fold(self.offset, |end, (&extent, &stride)| end.checked_add(extent.checked_sub(1)?.checked_mul(stride)?))?.checked_add(1)
    }

    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&extent, &stride)| {
            let fits = extent == 1 || stride == expected;
            expected *= extent;
            fits
        })
    }
}

/// A tensor that is described by a value; none where it is something else, the reason where it is of a kind that is not read.
fn described<'a>(pickle: &Pickle<'a>, mut id: Id) -> Option<Result<Described<'a>, String>> {
    // A parameter or a tensor of a class of its own wraps a tensor, one in the other at most.
    for _ in 0..3 {
        let (module, name, arguments) = pickle.call(id)?;
        let tensor = match (module, name, arguments) {
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state", &[inner, ..]) => {
                id = inner;
                continue;
            }
            ("torch._tensor", "_rebuild_from_type_v2", &[callable, _, inner, ..]) => {
                match (&pickle.values[callable], pickle.tuple(inner)) {
                    (Value::Class("torch._utils", "_rebuild_tensor_v2"), Some(arguments)) => tensor(pickle, arguments),
                    _ => Err("it is of a kind that is not read".into()),
                }
            }
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2", arguments) => tensor(pickle, arguments),
            ("torch._utils", other, _) if other.starts_with("_rebuild") => Err(format!("it is of a kind that is not read (`{other}`)")),
            _ => return None,
        };
        return Some(tensor);
    }
    Some(Err("it is wrapped too often".into()))
}

fn tensor<'a>(pickle: &Pickle<'a>, arguments: &[Id]) -> Result<Described<'a>, String> {
    let broken = || "its description is damaged".to_owned();
    let &[storage_id, offset, shape, strides, ..] = arguments else { return Err(broken()) };
    let Value::Persistent(id) = pickle.values[storage_id] else { return Err(broken()) };
    let storage = storage(pickle, id)?;
    let sizes = |id: Id| pickle.tuple(id)?.iter().map(|&size| pickle.size(size)).collect::<Option<Vec<_>>>();
    let (shape, strides) = (sizes(shape).ok_or_else(broken)?, sizes(strides).ok_or_else(broken)?);
    let offset = pickle.size(offset).and_then(|offset| offset.checked_add(storage.offset)).ok_or_else(broken)?;
    let Storage { key, dtype, available, .. } = storage;
    if shape.len() == strides.len() { Ok(Described { storage: key, dtype, available, offset, shape, strides }) } else { Err(broken()) }
}

fn storage<'a>(pickle: &Pickle<'a>, id: Id) -> Result<Storage<'a>, String> {
    let broken = || "its description is damaged".to_owned();
    let Some(&[_, class, key, _, available, ref rest @ ..]) = pickle.tuple(id) else { return Err(broken()) };
    let Value::Class(_, class) = pickle.values[class] else { return Err(broken()) };
    let dtype = match class {
        "FloatStorage" => Dtype::F32,
        "DoubleStorage" => Dtype::F64,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        other => return Err(format!("its values are of a type that is not read (`{other}`)")),
    };
    // In old files a storage may be a view of another one: the other's key, where the view begins, how long it is.
    let view = rest.first().and_then(|&view| pickle.tuple(view)).and_then(|view| view.get(1).copied());
    let offset = view.map_or(Some(0), |offset| pickle.size(offset)).ok_or_else(broken)?;
    Ok(Storage { key: pickle.text(key).ok_or_else(broken)?, dtype, available: pickle.size(available).ok_or_else(broken)?, offset })
}

/// The tensors of the state dict that a pickle holds, by itself or in a wrapper.
fn state_dict<'a>(pickle: &Pickle<'a>, key: Option<&str>, notes: &mut Vec<String>) -> Result<Vec<(String, Described<'a>)>, Failure> {
    let save = "save its state dict alone: `torch.save(model.state_dict(), PATH)`";
    if !matches!(pickle.values[pickle.root], Value::Dict(_)) {
        let what = match pickle.call(pickle.root) {
            _ if described(pickle, pickle.root).is_some() => "a single tensor".to_owned(),
            Some((module, name, _)) => format!("an object of the class `{module}.{name}`"),
            None => "no dict".to_owned(),
        };
        return Err(Failure::new(format!("it holds {what}, not a state dict"), save));
    }
    let mut found = Vec::new();
    look_for_dicts(pickle, pickle.root, String::new(), 0, &mut BTreeSet::new(), &mut found);
    let with_key = || found.iter().filter(|(path, _)| key.is_none_or(|key| key == path)).collect::<Vec<_>>();
    let named = |path: &str| if path.is_empty() { "the tensors at its top (`key: ''`)".to_owned() } else { format!("`{path}`") };
    let paths = |found: &[(String, Id)]| found.iter().map(|(path, _)| named(path)).collect::<Vec<_>>().join(", ");
    let (path, id) = match (with_key().as_slice(), key) {
        (&[(path, id)], _) => (path, *id),
        ([], None) => {
            let message = format!("there is no state dict in it; at its top it has {}", keys(pickle, pickle.root));
            return Err(Failure::new(message, save));
        }
        ([], Some(key)) => {
            let there = match found.as_slice() {
                [(path, _)] if path.is_empty() => "it is a state dict itself, without a wrapper".to_owned(),
                found => format!("it has {}", paths(found)),
            };
            return Err(Failure::new(
                format!("there is no state dict `{key}` in it; {there}"),
                "give one of these as `key`, or leave `key` out",
            ));
        }
        _ => {
            return Err(Failure::new(
                format!("it holds several state dicts: {}", paths(&found)),
                "choose one with `key`, such as `--set base.key=NAME`",
            ));
        }
    };
    if !path.is_empty() {
        notes.push(format!("the weights are those of `{path}` in the file"));
    }
    let Value::Dict(entries) = &pickle.values[id] else { return Err(Failure::new("it holds no dict", save)) };
    let (mut tensors, mut others) = (BTreeMap::new(), Vec::new());
    for &(name, value) in entries {
        match (pickle.text(name), described(pickle, value)) {
            (Some(name), Some(described)) => {
                let described = described.map_err(|reason| Failure::new(format!("of `{name}`: {reason}"), save))?;
                tensors.insert(name.to_owned(), described);
            }
            (name, _) => others.push(format!("`{}`", name.unwrap_or("?"))),
        }
    }
    if !others.is_empty() {
        const SHOWN: usize = 5;
        let more = if others.len() > SHOWN { ", ..." } else { "" };
        notes.push(format!(
            "{} entries that are no tensors were left out: {}{more}",
            others.len(),
            others[..others.len().min(SHOWN)].join(", ")
        ));
    }
    Ok(tensors.into_iter().collect())
}

/// What a module keeps beside its tensors ends with this.
const EXTRA: &str = "_extra_state";

/// Finds the dicts that hold weights, those in one that does too: tensors may lie beside a wrapper. Nothing is looked for behind keys that are numbers, as
/// the moments of optimisers are.
fn look_for_dicts(pickle: &Pickle<'_>, id: Id, path: String, depth: usize, seen: &mut BTreeSet<Id>, found: &mut Vec<(String, Id)>) {
    let Value::Dict(entries) = &pickle.values[id] else { return };
    if !seen.insert(id) {
        return;
    }
    // A single number beside the wrapper is a score, not a weight.
    let is_weight = |described: &Described<'_>| described.is_floating() && described.count().is_none_or(|count| count > 1);
    let holds = |&(key, value): &(Id, Id)| {
        pickle.text(key).is_some() && described(pickle, value).is_some_and(|tensor| tensor.as_ref().is_ok_and(is_weight))
    };
    if entries.iter().any(holds) {
        found.push((path.clone(), id));
    }
    if depth == DEEPEST {
        return;
    }
    for &(key, value) in entries {
        if let Some(key) = pickle.text(key).filter(|key| !key.ends_with(EXTRA)) {
            let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
            look_for_dicts(pickle, value, path, depth + 1, seen, found);
        }
    }
}

/// The first keys of a dict.
fn keys(pickle: &Pickle<'_>, id: Id) -> String {
    const SHOWN: usize = 10;
    let Value::Dict(entries) = &pickle.values[id] else { return "nothing".into() };
    let names: Vec<String> = entries.iter().filter_map(|&(key, _)| pickle.text(key)).take(SHOWN).map(|key| format!("`{key}`")).collect();
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}

/// The bytes of each tensor, row-major.
fn gathered<'a>(found: Vec<(String, Described<'_>)>, storages: &BTreeMap<&str, &'a [u8]>, file: usize) -> Result<Raw<'a>, Failure> {
    let mut room = file.saturating_mul(MOST_REPEATED);
    let mut raw = Vec::new();
    for (name, described) in found {
        let fail = |reason: &str| damaged(format!("of `{name}` {:?}: {reason}", described.shape));
        let width = described.dtype.bitsize() / 8;
        let storage = storages.get(described.storage).copied().ok_or_else(|| fail("its values are missing"))?;
        if described.available.checked_mul(width).is_none_or(|length| length > storage.len()) {
            return Err(fail("its values are not all there"));
        }
        let count = described.count().ok_or_else(|| fail("it is too large"))?;
        if count == 0 {
            raw.push((name, described.dtype, described.shape, Cow::Borrowed(&[][..])));
            continue;
        }
        if count > described.available || described.end().is_none_or(|end| end > storage.len() / width) {
            return Err(fail("it has more values than were saved for it"));
        }
        room = room.checked_sub(count * width).ok_or_else(|| fail("the tensors up to this one are several times as large as the file"))?;
        let bytes = if described.is_contiguous() {
            let start = described.offset * width;
            Cow::Borrowed(&storage[start..start + count * width])
        } else {
            Cow::Owned(strided(&described, storage, width, count))
        };
        raw.push((name, described.dtype, described.shape, bytes));
    }
    Ok(raw)
}

/// The bytes of a tensor whose values lie apart; all of them were found to lie in its storage.
fn strided(described: &Described<'_>, storage: &[u8], width: usize, count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count * width);
    let (mut index, mut place) = (vec![0; described.shape.len()], described.offset);
    for _ in 0..count {
        bytes.extend_from_slice(&storage[place * width..(place + 1) * width]);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            place += described.strides[axis];
            if index[axis] < described.shape[axis] {
                break;
            }
            place -= described.strides[axis] * described.shape[axis];
            index[axis] = 0;
        }
    }
    bytes
}

/// Takes off what wrappers have put before every name.
fn without_prefixes<'a>(mut raw: Raw<'a>, notes: &mut Vec<String>) -> Raw<'a> {
    let common = |raw: &Raw<'_>| {
        let wraps = |prefix: &&str| raw.iter().all(|(name, ..)| name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty()));
        PREFIXES.into_iter().find(wraps).filter(|_| !raw.is_empty())
    };
    let mut removed = String::new();
    while let Some(prefix) = common(&raw) {
        raw.iter_mut().for_each(|(name, ..)| drop(name.drain(..prefix.len())));
        removed.push_str(prefix);
    }
    if !removed.is_empty() {
        notes.push(format!("`{removed}` was taken off the front of all names"));
    }
    raw
}

/// The values of floating-point numbers of another width, rounded to 32 bits; none for other types.
fn single(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    fn each<const WIDTH: usize>(bytes: &[u8], value: impl Fn([u8; WIDTH]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<WIDTH>().0.iter().map(|bytes| value(*bytes)).collect()
    }
    match dtype {
        Dtype::F64 => Some(each(bytes, |bytes| f64::from_le_bytes(bytes) as f32)),
        Dtype::F16 => Some(each(bytes, |bytes| half::f16::from_le_bytes(bytes).to_f32())),
        Dtype::BF16 => Some(each(bytes, |bytes| half::bf16::from_le_bytes(bytes).to_f32())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use safetensors::tensor::TensorView;

    use super::*;

    /// A file that `tests/weights/generate.py` has written.
    fn file(name: &str) -> Vec<u8> {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/weights").join(name)).unwrap()
    }

    fn refusal(bytes: &[u8], key: Option<&str>) -> String {
        let Failure { message, remedy } = read_bytes(bytes, key).unwrap_err();
        assert!(!remedy.is_empty());
        format!("{message}; {remedy}")
    }

    fn expected() -> BTreeMap<String, Tensor> {
        let values = |shape: &[usize]| {
            let count: usize = shape.iter().product();
            Tensor::F32(Array::new(shape.to_vec(), (0..count).map(|index| index as f32 / 4.0 - 1.0).collect()))
        };
        BTreeMap::from([
            ("linear1.weight".into(), values(&[4, 3])),
            ("linear1.bias".into(), values(&[4])),
            ("norm.running_var".into(), values(&[4])),
            ("norm.num_batches_tracked".into(), Tensor::I64(Array::new(Vec::new(), vec![7]))),
        ])
    }

    #[test]
    fn whatever_torch_saves_is_read() {
        for (name, key, noted) in [
            ("plain.pth", None, &[][..]),
            ("old.pth", None, &[]),
            ("protocol4.pth", None, &[]),
            ("types.pth", None, &["1 of BF16, 1 of F16, 1 of F64"]),
            ("apart.pth", None, &[]),
            ("apart-old.pth", None, &[]),
            ("wrapped.pth", None, &["those of `state_dict`", "`module._orig_mod.` was taken off"]),
            ("wrapped.pth", Some("state_dict"), &["those of `state_dict`", "`module._orig_mod.` was taken off"]),
            ("several.pth", Some("state_dict_ema"), &["those of `state_dict_ema`", "`module.` was taken off"]),
            ("beside.pth", Some("state_dict"), &["those of `state_dict`"]),
        ] {
            let Weights { tensors, notes } = read_bytes(&file(name), key).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(tensors, expected(), "{name}");
            assert_eq!(notes.len(), noted.len(), "{name}: {notes:?}");
            noted.iter().for_each(|noted| assert!(notes.iter().any(|note| note.contains(noted)), "{name}: {notes:?}"));
        }
    }

    #[test]
    fn what_holds_no_state_dict_is_refused_with_what_it_is() {
        for (name, key, reason) in [
            ("several.pth", None, "holds several state dicts: `state_dict`, `state_dict_ema`"),
            ("beside.pth", None, "several state dicts: the tensors at its top (`key: ''`), `state_dict`"),
            ("several.pth", Some("ema"), "no state dict `ema` in it; it has `state_dict`"),
            ("plain.pth", Some("ema"), "a state dict itself"),
            ("module.pth", None, "of the class `torch.nn.modules.linear.Linear`"),
            ("none.pth", None, "at its top it has `epoch`, `loss`"),
            ("expanded.pth", None, "it has more values than were saved for it"),
            ("program.pth", None, "TorchScript"),
        ] {
            let message = refusal(&file(name), key);
            assert!(message.contains(reason), "{name}: {message}");
        }
        for (bytes, reason) in [
            (&b""[..], "empty"),
            (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
            (b"<!DOCTYPE html>", "web page"),
            (b"\x89PNG\r\n\x1a\n0000", "neither safetensors nor"),
            (b"PK\x03\x04", "not whole"),
            (b"PK\x05\x06PK\x03\x04", "neither"),
            (b"\x80\x04}.", "a pickle of Python, but none"),
        ] {
            let message = refusal(bytes, None);
            assert!(message.contains(reason), "{bytes:?}: {message}");
        }
    }

    #[test]
    fn a_file_that_was_cut_short_is_refused_wherever() {
        for name in ["plain.pth", "old.pth", "apart-old.pth"] {
            let whole = file(name);
            for length in 0..whole.len() {
                assert!(read_bytes(&whole[..length], None).is_err(), "{name} at {length}");
            }
        }
    }

    /// No panic and no allocation that the file does not account for; what is changed in values of an archive is noticed.
    #[test]
    fn no_byte_of_a_damaged_file_is_trusted() {
        for name in ["plain.pth", "old.pth", "wrapped.pth"] {
            let mut bytes = file(name);
            for place in 0..bytes.len() {
                let right = bytes[place];
                for wrong in [0, 0xff, right ^ 1, right ^ 0x80] {
                    bytes[place] = wrong;
                    let _ = read_bytes(&bytes, None);
                }
                bytes[place] = right;
            }
        }
        let mut bytes = file("plain.pth");
        let value = bytes.windows(4).position(|window| window == (-0.75_f32).to_le_bytes()).unwrap();
        bytes[value] ^= 1;
        assert!(refusal(&bytes, None).contains("is damaged"));
    }

    /// An archive with one entry, `a/data.pkl`, that says it is compressed.
    #[test]
    fn nothing_is_inflated() {
        let mut bytes = file("plain.pth");
        let directory = bytes.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
        bytes[directory + 10] = 8;
        assert!(refusal(&bytes, None).contains("compressed"));
    }

    #[test]
    fn weights_of_any_width_in_safetensors_become_32_bit_ones() {
        let values = [1.5_f32, -0.25, 3.0];
        let bytes = |dtype| -> Vec<u8> {
            let value = |value: f32| match dtype {
                Dtype::F64 => f64::from(value).to_le_bytes().to_vec(),
                Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
                Dtype::BF16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
                _ => value.to_le_bytes().to_vec(),
            };
            values.into_iter().flat_map(value).collect()
        };
        let saved = |dtype, shape: usize, bytes: &[u8]| {
            let view = TensorView::new(dtype, vec![shape], bytes).unwrap();
            safetensors::serialize([("module.w", view)], None::<HashMap<String, String>>).unwrap()
        };
        for dtype in [Dtype::F64, Dtype::F16, Dtype::BF16, Dtype::F32] {
            let Weights { tensors, notes } = read_bytes(&saved(dtype, 3, &bytes(dtype)), None).unwrap();
            assert_eq!(tensors["w"], Tensor::F32(Array::vector(values.to_vec())), "{dtype:?}");
            assert_eq!(notes.iter().any(|note| note.contains(&format!("1 of {dtype:?}"))), dtype != Dtype::F32);
        }
        assert!(refusal(&saved(Dtype::BOOL, 1, &[1]), None).contains("has the type BOOL"));
        assert!(refusal(&saved(Dtype::F32, 3, &bytes(Dtype::F32))[..40], None).contains("is damaged"));
        assert!(refusal(&saved(Dtype::F32, 3, &bytes(Dtype::F32)), Some("model")).contains("no wrappers"));
    }
}
