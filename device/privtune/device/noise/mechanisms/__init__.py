"""The mechanisms, one file each; `privtune.device.noise.registry` lists them in the same order.

none                        clean vectors, for comparison
dchi, gaussian              additive noise
privtune                    the paper's: d_chi noise around a shifted mean
shared, pool, codes         this project's: many tokens share one public vector, or one sum
snd, sap, textobfuscator,   other people's, each with its departure from the paper named
custext
"""
