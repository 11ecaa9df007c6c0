"""`[model]`: the network."""

from typing import Literal, Self

from pydantic import Field, model_validator

from s2s_cli.core.recipe.schema.combinations import misfits
from s2s_cli.core.recipe.schema.parts import Decoder, Encoder, StartValues, TorchInitialization
from s2s_cli.core.recipe.schema.table import Table


class Model(Table):
    """The network."""

    reverse_source: bool = Field(
        False, description="Feed the source's words last to first, end of sentence last."
    )
    tie: Literal["none", "softmax", "three-way"] = Field(
        "none",
        description="`softmax`: the softmax's matrix is the table of the decoder's vectors; "
        "`three-way`: and that of the encoder's too (Press & Wolf 2017), with a shared tokenizer.",
    )
    encoder: Encoder = Field(description="The reader of the source.")
    decoder: Decoder = Field(description="The writer of the target.")
    initialization: StartValues = Field(
        default=TorchInitialization(kind="torch"), description="Start values of the parameters."
    )

    @model_validator(mode="after")
    def parts_fit(self) -> Self:
        """Parts that make no sense together are told all at once, each with both keys."""
        if found := list(misfits(self.encoder, self.decoder, self.tie, self.initialization)):
            raise ValueError("\n".join(found))
        return self
