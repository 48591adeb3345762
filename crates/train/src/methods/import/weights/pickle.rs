//! Python's pickles as data: what a pickle would build is noted, and nothing of it is called. Values lie in one list and name one another by their
//! place there, so that a pickle needs memory in proportion to its length, however its values are nested or repeated.

/// The place of a value.
pub(super) type Id = usize;

/// A value of a pickle.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    None,
    Int(i64),
    /// What is of no use here: numbers that are not whole, bytes, sets.
    Other,
    Text(&'a str),
    Class(&'a str, &'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// What calling something would give.
    Call(Id, Id),
    /// Something that lies beside the pickle.
    Persistent(Id),
}

/// All values of a pickle.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    pub(super) values: Vec<Value<'a>>,
    pub(super) root: Id,
    /// Its length, up to which the file was read.
    pub(super) length: usize,
}

/// A pickle is at most this long; that of a large network's weights is a thousandth of it.
const LONGEST: usize = 1 << 24;

impl<'a> Pickle<'a> {
    /// Reads the pickle at the beginning of `bytes`.
    ///
    /// # Errors
    /// When it ends too early, is too long, or none that PyTorch writes.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let bytes = &bytes[..bytes.len().min(LONGEST)];
        let mut reader = Reader { bytes, place: 0, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: Vec::new() };
        while reader.step()? {}
        let root = reader.pop()?;
        Ok(Self { values: reader.values, root, length: reader.place })
    }

    /// The text of a value that is one.
    pub(super) fn text(&self, id: Id) -> Option<&'a str> {
        match self.values[id] {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number of a value that is a whole one, 0 or more.
    pub(super) fn size(&self, id: Id) -> Option<usize> {
        match self.values[id] {
            Value::Int(value) => usize::try_from(value).ok(),
            _ => None,
        }
    }

    /// The values of a tuple.
    pub(super) fn tuple(&self, id: Id) -> Option<&[Id]> {
        match &self.values[id] {
            Value::Tuple(values) => Some(values),
            _ => None,
        }
    }

    /// What is called and with what, by module and name, of a value that is a call.
    pub(super) fn call(&self, id: Id) -> Option<(&'a str, &'a str, &[Id])> {
        let Value::Call(callable, arguments) = self.values[id] else { return None };
        let Value::Class(module, name) = self.values[callable] else { return None };
        Some((module, name, self.tuple(arguments)?))
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    place: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// How high the stack was at each mark.
    marks: Vec<usize>,
    memo: Vec<Option<Id>>,
}

impl<'a> Reader<'a> {
    /// Does what the next byte says; false at the end.
    fn step(&mut self) -> Result<bool, String> {
        match self.byte()? {
            b'.' => return Ok(false),
            0x80 => drop(self.take(1)?),
            // A frame's length.
            0x95 => drop(self.take(8)?),
            b'N' => self.push(Value::None),
            0x88 | 0x89 => self.push(Value::Other),
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()));
            }
            b'K' => {
                let value = self.byte()?;
                self.push(Value::Int(value.into()));
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()));
            }
            0x8a => {
                let length = self.byte()?;
                let bytes = self.take(length.into())?;
                self.push(long(bytes));
            }
            0x8b => {
                let bytes = self.prefixed_by_4()?;
                self.push(long(bytes));
            }
            b'G' => {
                self.take(8)?;
                self.push(Value::Other);
            }
            b'X' => {
                let bytes = self.prefixed_by_4()?;
                self.push_text(bytes)?;
            }
            0x8c => {
                let length = self.byte()?;
                let bytes = self.take(length.into())?;
                self.push_text(bytes)?;
            }
            0x8d => {
                let bytes = self.prefixed_by_8()?;
                self.push_text(bytes)?;
            }
            // Strings of Python 2.
            b'T' => {
                let bytes = self.prefixed_by_4()?;
                self.push(std::str::from_utf8(bytes).map_or(Value::Other, Value::Text));
            }
            b'U' => {
                let length = self.byte()?;
                let bytes = self.take(length.into())?;
                self.push(std::str::from_utf8(bytes).map_or(Value::Other, Value::Text));
            }
            b'B' => {
                self.prefixed_by_4()?;
                self.push(Value::Other);
            }
            b'C' => {
                let length = self.byte()?;
                self.take(length.into())?;
                self.push(Value::Other);
            }
            0x8e | 0x96 => {
                self.prefixed_by_8()?;
                self.push(Value::Other);
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Class(module, name));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let class = match (&self.values[module], &self.values[name]) {
                    (&Value::Text(module), &Value::Text(name)) => Value::Class(module, name),
                    _ => return Err(damaged()),
                };
                self.push(class);
            }
            b')' => self.push(Value::Tuple(Vec::new())),
            0x85..=0x87 => {
                let count = usize::from(self.bytes[self.place - 1] - 0x84);
                let start = self.floor(count)?;
                let values = self.stack.split_off(start);
                self.push(Value::Tuple(values));
            }
            b'(' => self.marks.push(self.stack.len()),
            b't' => {
                let values = self.pop_marked()?;
                self.push(Value::Tuple(values));
            }
            b']' => self.push(Value::List(Vec::new())),
            b'l' => {
                let values = self.pop_marked()?;
                self.push(Value::List(values));
            }
            b'}' => self.push(Value::Dict(Vec::new())),
            b'd' => {
                let values = self.pop_marked()?;
                self.push(Value::Dict(pairs(&values)?));
            }
            0x8f => self.push(Value::Other),
            0x90 => drop(self.pop_marked()?),
            0x91 => {
                self.pop_marked()?;
                self.push(Value::Other);
            }
            b'a' => {
                let value = self.pop()?;
                self.extend(vec![value])?;
            }
            b'e' => {
                let values = self.pop_marked()?;
                self.extend(values)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.insert(vec![(key, value)])?;
            }
            b'u' => {
                let values = self.pop_marked()?;
                self.insert(pairs(&values)?)?;
            }
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                let value = self.called(callable, arguments);
                self.push(value);
            }
            0x92 => {
                let (_, arguments, callable) = (self.pop()?, self.pop()?, self.pop()?);
                self.push(Value::Call(callable, arguments));
            }
            // The state of an object, such as the versions that a state dict carries: not read.
            b'b' => drop(self.pop()?),
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id));
            }
            b'0' => {
                self.pop()?;
            }
            b'1' => drop(self.pop_marked()?),
            b'2' => {
                let value = *self.stack.last().ok_or_else(damaged)?;
                self.stack.push(value);
            }
            b'q' => {
                let index = self.byte()?;
                self.remember(index.into())?;
            }
            b'r' => {
                let index = u32::from_le_bytes(self.array()?);
                self.remember(index as usize)?;
            }
            0x94 => self.remember(self.memo.len())?,
            b'h' => {
                let index = self.byte()?;
                self.recall(index.into())?;
            }
            b'j' => {
                let index = u32::from_le_bytes(self.array()?);
                self.recall(index as usize)?;
            }
            other => return Err(format!("its pickle has the instruction 0x{other:02x}, which PyTorch does not write")),
        }
        Ok(true)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let bytes = self.place.checked_add(length).and_then(|end| self.bytes.get(self.place..end));
        let bytes = bytes.ok_or_else(|| match self.bytes.len() {
            LONGEST => format!("its pickle is longer than {LONGEST} bytes"),
            _ => "its pickle ends too early: the file is not whole".to_owned(),
        })?;
        self.place += length;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("as many bytes as were taken"))
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn prefixed_by_4(&mut self) -> Result<&'a [u8], String> {
        let length = u32::from_le_bytes(self.array()?);
        self.take(length as usize)
    }

    fn prefixed_by_8(&mut self) -> Result<&'a [u8], String> {
        let length = u64::from_le_bytes(self.array()?);
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.place..];
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or_else(damaged)?;
        self.place += length + 1;
        std::str::from_utf8(&rest[..length]).map_err(|_| damaged())
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn push_text(&mut self, bytes: &'a [u8]) -> Result<(), String> {
        self.push(Value::Text(std::str::from_utf8(bytes).map_err(|_| damaged())?));
        Ok(())
    }

    /// Where the topmost `count` values begin that no mark parts.
    fn floor(&self, count: usize) -> Result<usize, String> {
        let start = self.stack.len().checked_sub(count).ok_or_else(damaged)?;
        if self.marks.last().is_some_and(|&mark| start < mark) { Err(damaged()) } else { Ok(start) }
    }

    fn pop(&mut self) -> Result<Id, String> {
        self.floor(1)?;
        self.stack.pop().ok_or_else(damaged)
    }

    fn pop_marked(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or_else(damaged)?;
        Ok(self.stack.split_off(mark))
    }

    fn extend(&mut self, more: Vec<Id>) -> Result<(), String> {
        let target = *self.stack.last().ok_or_else(damaged)?;
        if let Value::List(values) = &mut self.values[target] {
            values.extend(more);
        }
        Ok(())
    }

    fn insert(&mut self, more: Vec<(Id, Id)>) -> Result<(), String> {
        let target = *self.stack.last().ok_or_else(damaged)?;
        if let Value::Dict(entries) = &mut self.values[target] {
            entries.extend(more);
        }
        Ok(())
    }

    /// An ordered dict is a dict, of the pairs that it is made of, which it takes over; all other calls stay calls.
    fn called(&mut self, callable: Id, arguments: Id) -> Value<'a> {
        let Value::Class("collections", "OrderedDict" | "defaultdict") = self.values[callable] else {
            return Value::Call(callable, arguments);
        };
        let first = match &self.values[arguments] {
            Value::Tuple(arguments) => arguments.first().copied(),
            _ => None,
        };
        let entries = match first.map(|first| &mut self.values[first]) {
            Some(Value::List(entries)) => std::mem::take(entries),
            _ => Vec::new(),
        };
        let pair = |entry: Id| match &self.values[entry] {
            Value::Tuple(pair) | Value::List(pair) => <[Id; 2]>::try_from(pair.as_slice()).ok().map(|[key, value]| (key, value)),
            _ => None,
        };
        Value::Dict(entries.into_iter().filter_map(pair).collect())
    }

    fn remember(&mut self, index: usize) -> Result<(), String> {
        let value = *self.stack.last().ok_or_else(damaged)?;
        // Indices count up; one that a file this long cannot have reached asks for memory only.
        if index > self.place {
            return Err(damaged());
        }
        if self.memo.len() <= index {
            self.memo.resize(index + 1, None);
        }
        self.memo[index] = Some(value);
        Ok(())
    }

    fn recall(&mut self, index: usize) -> Result<(), String> {
        let value = self.memo.get(index).copied().flatten().ok_or_else(damaged)?;
        self.stack.push(value);
        Ok(())
    }
}

fn damaged() -> String {
    "its pickle is damaged".to_owned()
}

fn pairs(values: &[Id]) -> Result<Vec<(Id, Id)>, String> {
    let (pairs, rest) = values.as_chunks::<2>();
    if rest.is_empty() { Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()) } else { Err(damaged()) }
}

/// A whole number in as many bytes as it needs.
fn long(bytes: &[u8]) -> Value<'static> {
    if bytes.len() > 8 {
        return Value::Other;
    }
    let fill = if bytes.last().is_some_and(|&last| last >= 0x80) { 0xff } else { 0 };
    let mut whole = [fill; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_noted_and_nothing_is_called() {
        let pickle = Pickle::read(b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.").unwrap();
        assert_eq!(pickle.call(pickle.root).map(|(module, name, _)| (module, name)), Some(("os", "system")));
        assert_eq!(long(&[0xff]), Value::Int(-1));
        assert_eq!(long(&[0, 1]), Value::Int(256));
    }

    /// Each step doubles what the last one has made; candle's reader copies it.
    #[test]
    fn repeated_values_take_no_more_memory_than_the_pickle() {
        let mut bytes = b"\x80\x02N".to_vec();
        bytes.extend(b"2\x86".repeat(10_000));
        bytes.push(b'.');
        assert_eq!(Pickle::read(&bytes).unwrap().values.len(), 10_001);
    }

    #[test]
    fn what_is_no_pickle_is_refused() {
        let whole = b"\x80\x02}q\x00X\x01\0\0\0aK\x01s.";
        Pickle::read(whole).unwrap();
        for length in 0..whole.len() {
            assert!(Pickle::read(&whole[..length]).is_err(), "{length}");
        }
        for bytes in [
            &b"\x80\x02X\xff\xff\xff\xffa."[..],
            b"\x80\x02Nr\xff\xff\xff\x7f.",
            b"\x80\x02(\x85.",
            b"\x80\x02h\x05.",
            b"\x80\x02(N0.",
            b"\x80\x02(Nd.",
            b"\x80\x02NN\x93.",
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
            b"i",
            b".",
            b"",
        ] {
            assert!(Pickle::read(bytes).is_err(), "{bytes:?}");
        }
    }
}
