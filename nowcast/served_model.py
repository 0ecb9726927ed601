"""The model that MLflow serves: it loads a saved nowcaster and answers with lead frames.

MLflow copies this file into each logged model and runs it there; the nowcaster itself is read by
`nowcast.nowcasters.neural`, which takes settings and weights and no code.
"""

from typing import Any

import mlflow  # noqa: TID253
import numpy as np
from mlflow.exceptions import MlflowException  # noqa: TID253
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE  # noqa: TID253
from mlflow.pyfunc import PythonModel  # noqa: TID253

from nowcast.predictors import open_trained


class ServedNowcaster(PythonModel):  # type: ignore[misc]
    """Lead frames for input frames, both in physical units, missing pixels as null."""

    def load_context(self, context: Any) -> None:
        """Load the saved nowcaster that lies beside this file."""
        self._nowcaster = open_trained(context.artifacts["nowcaster"])

    def predict(self, context, model_input):  # type: ignore[no-untyped-def]  # noqa: ARG002
        """Give the lead frames; of a predictor, its series or the probabilities of its classes.

        Parameters
        ----------
        context
            Of MLflow; unused, since `load_context` has read it.
        model_input : (batch, frame, y, x)
            Physical units; null, NaN where not observed.

        Returns
        -------
        lead_frames : (batch, lead frame, y, x)
            Objects: a number, or None where missing, since JSON knows no NaN.

        Raises
        ------
        MlflowException
            If the values are out of range or the grid does not fit: a bad request.
        """
        frames = np.asarray(model_input, dtype=np.float32)
        variable = self._nowcaster.settings.variable
        wrong = np.isinf(frames) | (frames < variable.valid_min) | (frames > variable.valid_max)
        if wrong.any():
            raise MlflowException(
                f"{int(wrong.sum())} values are outside [{variable.valid_min}, "
                f"{variable.valid_max}] {variable.units}",
                error_code=INVALID_PARAMETER_VALUE,
            )
        try:
            lead_frames = self._nowcaster.forecast(frames)
        except ValueError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None
        answer = lead_frames.astype(object)
        answer[np.isnan(lead_frames)] = None
        return answer


mlflow.models.set_model(ServedNowcaster())
