//! One file a method.

pub(crate) mod exact;
pub(crate) mod finetune;
pub(crate) mod modular;
pub(crate) mod oracle;
pub(crate) mod random_label;
pub(crate) mod retrain;

#[cfg(test)]
mod tests {
    use dcu_stage::{Input, Method};

    /// `--set STAGE.uses=unlearn/METHOD` swaps a method in one line.
    #[test]
    fn every_method_takes_the_same_inputs() {
        let wires = |inputs: &[Input]| {
            let mut wires: Vec<_> = inputs.iter().map(|input| (input.name, input.schema)).collect();
            wires.sort_unstable();
            wires
        };
        let common = [
            ("dataset", "dataset/1"),
            ("ensemble", "ensemble/1"),
            ("holdout", "holdout/1"),
            ("model", "model/1"),
            ("reduced", "reduced/1"),
            ("request", "request/1"),
            ("statistics", "statistics/1"),
            ("test", "dataset/1"),
        ];
        for inputs in [
            super::exact::Exact::INPUTS,
            super::finetune::Finetune::INPUTS,
            super::modular::Modular::INPUTS,
            super::oracle::Match::INPUTS,
            super::random_label::RandomLabel::INPUTS,
            super::retrain::Retrain::INPUTS,
        ] {
            assert_eq!(wires(inputs), common);
        }
    }
}
